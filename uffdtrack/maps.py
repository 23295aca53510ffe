"""/proc/PID/maps, parsed. Pure: text in, regions out."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)"
)
_MEMORY_FILES = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV", "/dev/hugepages/")


@dataclass(frozen=True, slots=True)
class Region:
    """One mapping: a line of /proc/PID/maps (proc_pid_maps(5)).

    `start`, `end` and `offset` are in bytes; `device` is "major:minor" in hex as the kernel prints it.
    """

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    name: str

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def shared(self) -> bool:
        return self.permissions[3] == "s"

    @property
    def deleted(self) -> bool:
        return self.name.endswith(" (deleted)")

    @property
    def in_memory_file(self) -> bool:
        """Backed by a file that lives in memory only: memfd, /dev/shm, System V, anonymous shared."""
        return self.name.startswith(_MEMORY_FILES)

    @property
    def special(self) -> bool:
        """The kernel's own: vvar, vsyscall, what uprobes execute, aio rings, devices. No contents of ours."""
        return self.name.startswith(("[vvar", "[vsyscall]", "[uprobes", "anon_inode:", "/[aio]")) or (
            self.name.startswith("/dev/") and not self.in_memory_file
        )

    @property
    def anonymous(self) -> bool:
        """Private and zero where nothing was written."""
        return not self.shared and (self.inode == 0 or self.name.startswith("/anon_hugepage"))

    @property
    def file_backed(self) -> bool:
        """Private, of a file that others can open: the file's content where nothing was written."""
        return not (self.shared or self.anonymous or self.deleted or self.in_memory_file or self.special)

    @property
    def stored(self) -> bool:
        """Whether a checkpoint holds contents of this mapping."""
        if self.special:
            return False
        if self.shared and not self.in_memory_file and not self.deleted:
            return self.permissions[1] == "w"
        return True


def parse_maps(text: str) -> list[Region]:
    """Parse the whole text of a maps file.

    Raises:
        ValueError: a line is not one of /proc/PID/maps.
    """
    regions = []
    for line in text.splitlines():
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
            )
        )
    return regions
