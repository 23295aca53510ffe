"""Files for mappings that are made again: the target has them open, or we open them in its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import numpy as np

from uffdtrack import PAGE, Injector, Region, Tracee, task_directory
from uffdtrack.errors import TargetError
from uffdtrack.runs import Pages
from uffdtrack.syscalls import CLOSE, OPENAT

_AT_FDCWD = -100


def open_files(pid: int, inodes: set[int]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """The descriptors of some open files, by device and inode, with the flags of open(2).

    Other files are not asked: their own file system may wait for the target (FUSE).
    """
    task = task_directory(pid)
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for name in sorted(os.listdir(task / "fd"), key=int):
        try:
            if not os.readlink(task / "fd" / name).startswith("/"):
                continue  # a pipe, a socket
            info = dict(line.split(":", 1) for line in (task / "fdinfo" / name).read_text().splitlines()[:4])
            if int(info.get("ino", 0)) not in {*inodes, 0}:
                continue  # `ino`: Linux 5.14
            s = os.stat(task / "fd" / name)
        except (OSError, ValueError):
            continue
        found.setdefault((s.st_dev, s.st_ino), []).append((int(name), int(info["flags"], 8)))
    return found


class Files:
    """The files behind mappings of one process.

    Args:
        regions: mappings that may have to be made again.
        known: each file's identity, by its name, when it was checked (`mapped_files`).
    """

    def __init__(self, pid: int, regions: Iterable[Region], known: dict[str, list[int]]) -> None:
        self.pid = pid
        self._inodes = {region.inode for region in regions}
        self._known = known
        self._open_files: dict[tuple[int, int], list[tuple[int, int]]] | None = None

    def descriptor_of(self, region: Region) -> int | None:
        """A descriptor of the target for the file behind a mapping, with which it may be mapped as it was."""
        if self._open_files is None:
            self._open_files = open_files(self.pid, self._inodes)
        major, minor = (int(part, 16) for part in region.device.split(":"))
        for number, flags in self._open_files.get((os.makedev(major, minor), region.inode), []):
            mode = flags & os.O_ACCMODE
            if flags & os.O_PATH or mode == os.O_WRONLY:
                continue
            if region.shared and "w" in region.permissions and mode != os.O_RDWR:
                continue
            return number
        return None

    def open(self, injector: Injector, text: Text, region: Region) -> int:
        """Open a file in the target, by its name there; it has to be the file that was checked.

        Raises:
            TargetError: it is another file now, or we cannot open it.
        """
        task = task_directory(self.pid)
        mode = os.O_RDWR if region.shared and "w" in region.permissions else os.O_RDONLY
        root, error = os.readlink(task / "root"), TargetError(f"{region.name} is another file now")

        def call(place: int) -> int:
            arguments = [_AT_FDCWD, place, mode | os.O_CLOEXEC, 0]
            return injector.call(OPENAT, arguments, f"open {region.name}")

        # Of a target in a chroot(2), we see names that begin with its root.
        for name in sorted({region.name, region.name.removeprefix(root.rstrip("/"))}, key=len):
            try:
                number = text.lend(name, call)
            except TargetError as refused:
                error = refused
                continue
            s = os.stat(task / "fd" / str(number))
            if [s.st_dev, s.st_ino] == self._known.get(region.name, [])[:2]:
                return number
            self.close(injector, number)
        raise error

    def close(self, injector: Injector, number: int) -> None:
        injector.call(CLOSE, [number], "close a file")


class Text:
    """Puts a text below the stack pointer of a stopped target while a call needs it.

    Args:
        memory: its memory, /proc/PID/mem, open for reading and writing.
        untrap: see `Changes.untrap`.
    """

    def __init__(self, tracee: Tracee, memory: int, untrap: Callable[[Pages], None]) -> None:
        self._untrap = untrap
        self._tracee = tracee
        self._memory = memory

    def lend(self, text: str, call: Callable[[int], int]) -> int:
        """Args:
        call: gets the address.

        Raises:
            TargetError: there is no stack.
        """
        state = next(t for t in self._tracee.threads if not t.worker)
        data = os.fsencode(text) + b"\0"
        stack = int.from_bytes(state.regs[152:160], "little")
        place = (stack - 128 - len(data)) & ~15  # below the red zone
        self._untrap(np.arange(place // PAGE, (place + len(data) - 1) // PAGE + 1, dtype=np.uint64))
        try:
            saved = os.pread(self._memory, len(data), place)
            os.pwrite(self._memory, data, place)
        except OSError as error:
            raise TargetError(f"cannot give process {self._tracee.pid} a name: it has no stack") from error
        try:
            return call(place)
        finally:
            os.pwrite(self._memory, saved, place)
