"""/proc/PID/maps, parsed. Pure: text in, regions out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) ([0-9]+) *(.*)",
    re.DOTALL,
)
_MEMORY = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV", "/dev/hugepages", "/anon_hugepage")
_RINGS = ("anon_inode:", "/[aio]", "socket:[")
_DEVICES = ("/dev/", "/sys/", "/dmabuf:")

LEFT_OUT = {
    "device": "a device's memory",
    "secret": "memory that nobody but the process can read (memfd_secret)",
    "ring": "shared with an object of the kernel",
}
"""Kinds of mappings whose own contents no copy of a process has, and why."""


@dataclass(frozen=True, slots=True)
class Region:
    """One mapping: a line of /proc/PID/maps (proc_pid_maps(5)).

    `start`, `end` and `offset` are in bytes; `device` is "major:minor" in hex as the kernel prints it. `kind`
    is what we found behind it; "": we did not ask, so its name decides.
    """

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    name: str
    kind: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", _kind_by_name(self))

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def shared(self) -> bool:
        return self.permissions[3] == "s"

    @property
    def in_memory_file(self) -> bool:
        """Backed by a file that lives in memory only: memfd, /dev/shm, System V, anonymous shared."""
        return self.kind in ("shared-memory", "private-memory")

    @property
    def special(self) -> bool:
        """The kernel's own (vvar, vsyscall), or left out. No copy ever has its contents."""
        return self.kind == "kernel" or self.kind in LEFT_OUT

    @property
    def anonymous(self) -> bool:
        """Private and zero where nothing was written."""
        return self.kind in ("anonymous", "huge")

    @property
    def file_backed(self) -> bool:
        """Private, of a file that others can open: the file's content where nothing was written."""
        return self.kind == "file"

    @property
    def stored(self) -> bool:
        """Whether a copy of the process has contents of this mapping."""
        return not self.special and self.kind != "view"

    @property
    def left_out(self) -> str:
        """Why no copy has its contents; "" if a copy or a file has them."""
        return LEFT_OUT.get(self.kind, "")


def _kind_by_name(region: Region) -> str:
    """What a mapping is, as far as its line tells. maps.h has the core's names."""
    name = region.name
    if not region.inode and not region.shared and not name.startswith("/"):
        if name.startswith("[vdso]"):
            return "vdso"
        return "kernel" if name.startswith(("[vvar", "[vsyscall]", "[uprobes")) else "anonymous"
    if name == "/dev/zero":
        return "shared" if region.shared else "anonymous"
    if name.startswith("/anon_hugepage") and not region.shared:
        return "huge"
    if name.startswith(_MEMORY):
        return "shared-memory" if region.shared else "private-memory"
    if name.startswith(_RINGS):
        return "ring"
    if name.startswith("/secretmem"):
        return "secret"
    if name.startswith(_DEVICES):
        return "device"
    if name.endswith(" (deleted)"):
        return "shared" if region.shared else "deleted"
    if region.shared:
        return "shared" if region.permissions[1] == "w" else "view"
    return "file"


def parse_maps(text: str, kinds: Sequence[str] = ()) -> list[Region]:
    """Parse the whole text of a maps file.

    Args:
        kinds: for each line, if more is known than its name.

    Raises:
        ValueError: a line is not one of /proc/PID/maps.
    """
    regions = []
    # Nothing else ends a line: a name may hold any other character.
    for i, line in enumerate(text.removesuffix("\n").split("\n") if text else ()):
        found = _LINE.fullmatch(line)
        if not found:
            raise ValueError(f"not a line of /proc/PID/maps: {line!r}")
        start, end, permissions, offset, major, minor, inode, name = found.groups()
        regions.append(
            Region(
                int(start, 16),
                int(end, 16),
                permissions,
                int(offset, 16),
                f"{major}:{minor}",
                int(inode),
                name,
                kinds[i] if kinds else "",
            )
        )
    return regions
