"""Putting the mappings of a stopped process back, by system calls in its name.

Each step can be taken back until `commit`, and `commit` does only what cannot fail any more.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass

from checkpoint.chain import View
from checkpoint.targets.process import descriptors, mapped_files, proc_read
from uffdtrack import PAGE, Injector, Region, Tracee, read_maps
from uffdtrack.errors import RollbackRefusedError, TargetError

_MMAP, _MPROTECT, _MUNMAP, _BRK, _MREMAP, _CLOSE, _OPENAT = 9, 10, 11, 12, 25, 3, 257
_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 1, 2, 0x20, 0x100
_MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0x4000, 0x100000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_AT_FDCWD = -100
_HUGE = 2 << 20
_START_BRK = 44  # field 47 of proc_pid_stat(5), counted from the state on

Call = tuple[int, list[int], str]
"""Number, arguments, and what it does in words."""


@dataclass(slots=True)
class Change:
    """One stretch of addresses: what is there and what was."""

    start: int
    end: int
    now: Region | None
    then: Region | None

    @property
    def size(self) -> int:
        return self.end - self.start


def split_changes(now: list[Region], then: list[Region]) -> list[Change]:
    """All stretches between the boundaries of two lists of mappings, special ones left out."""
    now = [r for r in now if not r.special and r.name != "[vdso]"]
    then = [r for r in then if not r.special and r.name != "[vdso]"]
    cuts = sorted({b for r in (*now, *then) for b in (r.start, r.end)})
    changes: list[Change] = []
    i = j = 0
    for start, end in itertools.pairwise(cuts):
        while i < len(now) and now[i].end <= start:
            i += 1
        while j < len(then) and then[j].end <= start:
            j += 1
        a = now[i] if i < len(now) and now[i].start <= start else None
        b = then[j] if j < len(then) and then[j].start <= start else None
        if a or b:
            changes.append(Change(start, end, a, b))
    return changes


def same_object(a: Region, b: Region) -> bool:
    """Whether two mappings of one address show the same memory or the same place of the same file."""
    if a.shared != b.shared or a.anonymous != b.anonymous:
        return False
    if a.anonymous:
        return True
    return (a.device, a.inode, a.offset - a.start) == (b.device, b.inode, b.offset - b.start)


def protection(region: Region) -> int:
    return sum(bit for bit, c in zip((1, 2, 4), region.permissions, strict=False) if c != "-")


def page_end(address: int) -> int:
    return -(-address // PAGE) * PAGE


def start_break(pid: int) -> int:
    """Where the heap begins: the program break of a process that has none yet."""
    text = proc_read(pid, "stat").decode(errors="replace")
    return int(text[text.rindex(")") + 2 :].split()[_START_BRK])


class Mappings:
    """The mappings of one stopped process, on their way to those of a view.

    Attributes:
        warnings: what is not as it was, in words.
        changed: how many mappings were made, removed, replaced or protected.
    """

    def __init__(self, pid: int, view: View, tracee: Tracee, memory: int) -> None:
        """Args:
        memory: the process's memory, /proc/PID/mem, open for reading and writing.
        """
        self.pid = pid
        self.view = view
        self.tracee = tracee
        self.memory = memory
        self.warnings: list[str] = []
        self.changed = 0
        self._undo: list[Call] = []
        self._last: list[Call] = []

    # -- checks: nothing is changed --------------------------------------------------------------

    def check(self) -> None:
        """Raises: RollbackRefusedError: what is not mapped any more cannot be mapped again."""
        regions, epoch = read_maps(self.pid), self.view.epoch
        fixed = [[(r.start, r.end) for r in rs if r.name == "[vdso]"] for rs in (regions, epoch.regions)]
        if fixed[0] != fixed[1]:
            raise RollbackRefusedError("the process has replaced its program (exec) since that epoch")
        files = mapped_files(epoch.regions, self.pid)
        changed_files = set()
        for change in split_changes(regions, epoch.regions):
            then = change.then
            if not then or then.anonymous:
                continue
            was, found = epoch.meta["files"].get(then.name), files.get(then.name)
            if change.now and same_object(change.now, then):
                if then.file_backed and was and found != was:
                    changed_files.add(then.name)
            elif self._descriptor_of(then) is None:
                # Contents of a shared mapping are in the image: that it is that file is enough.
                known = 2 if then.shared else 4
                if not found or not was or found[:known] != was[:known]:
                    raise RollbackRefusedError(
                        f"{then.name or 'a shared mapping'} at {then.start:#x} is not mapped any more, and "
                        "the file is not what it was or cannot be opened"
                    )
        self.warnings += [f"the mapped file {name} has changed since" for name in sorted(changed_files)]

    def _descriptor_of(self, region: Region) -> int | None:
        """An open file of the target that is the one behind a mapping, and may be mapped as that was."""
        major, minor = (int(part, 16) for part in region.device.split(":"))
        task = f"/proc/{self.pid}/task/{self.tracee.threads[0].tid}"
        for number, _ in descriptors(self.pid):
            try:
                s = os.stat(f"{task}/fd/{number}")
                if (os.major(s.st_dev), os.minor(s.st_dev), s.st_ino) != (major, minor, region.inode):
                    continue
                with open(f"{task}/fdinfo/{number}") as info:
                    flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
            except (OSError, StopIteration):
                continue
            mode = flags & os.O_ACCMODE
            if flags & os.O_PATH or mode == os.O_WRONLY:
                continue
            if region.shared and "w" in region.permissions and mode != os.O_RDWR:
                continue
            return number
        return None

    # -- changes that can be taken back ----------------------------------------------------------

    def make(self, injector: Injector) -> None:
        """Everything that can fail. Memory that goes is not given up yet.

        Raises:
            UffdtrackError: a step has failed; the ones before it are for `take_back`.
        """
        self.changed = 0
        self._undo, self._last = [], []
        shrinks = self._move_break(injector)
        for change in split_changes(read_maps(self.pid), self.view.epoch.regions):
            now, then = change.now, change.then
            self.tracee.check_time()
            if not now:
                self._map(injector, change)
            elif then and not same_object(now, then):
                self._set_aside(injector, change)
                self._map(injector, change)
            elif not then:
                self._forbid(injector, change, now)
                if not shrinks[0] <= change.start < shrinks[1]:
                    self._last.append((_MUNMAP, [change.start, change.size], f"unmap {change.start:#x}"))
            elif now.permissions != then.permissions:
                self._protect(injector, change, now, then)

    @property
    def begun(self) -> bool:
        """Whether there is anything to take back."""
        return bool(self._undo)

    def take_back(self, injector: Injector) -> None:
        while self._undo:
            number, arguments, doing = self._undo[-1]
            if injector.call(number, arguments, doing) != arguments[0] and number == _BRK:
                raise TargetError(f"cannot {doing} in process {self.pid}")
            self._undo.pop()

    def commit(self, injector: Injector) -> None:
        """Give up what is no more. What fails here all the same is named in `warnings`."""
        for number, arguments, doing in self._last:
            try:
                failed = injector.call(number, arguments, doing) != arguments[0] and number == _BRK
                reason = f"cannot {doing}" if failed else ""
            except TargetError as error:
                reason = str(error)
            if reason:
                self.warnings.append(f"{reason}: what it would have taken away is left")
        self._undo, self._last = [], []

    def _call(self, injector: Injector, call: Call, undo: Call) -> None:
        injector.call(*call)
        self._undo.append(undo)

    def _move_break(self, injector: Injector) -> tuple[int, int]:
        """Grow the heap now, or plan that it shrinks; returns the range that it will lose.

        The heap comes and goes by brk(2) alone: munmap(2) would leave the break where it was, and the
        next sbrk(3) would hand out addresses where nothing is.
        """
        recorded = self.view.epoch.meta["heap_end"]
        if recorded == max((r.end for r in read_maps(self.pid) if r.name == "[heap]"), default=0):
            return 0, 0
        then = recorded or start_break(self.pid)
        if not then:
            raise RollbackRefusedError("where the heap of the process begins is not known")
        now = injector.call(_BRK, [0], "ask for the program break")
        if page_end(then) > page_end(now):
            if injector.call(_BRK, [then], "grow the heap") != then:
                raise RollbackRefusedError("the heap cannot grow to where it ended at that epoch")
            self._undo.append((_BRK, [now], "shrink the heap"))
            self.changed += 1
        if page_end(then) >= page_end(now):
            return 0, 0
        lost = page_end(then), page_end(now)
        if any(r.start < lost[1] and lost[0] < r.end for r in self.view.epoch.regions):
            raise RollbackRefusedError("the heap has grown over what was mapped at that epoch")
        self._last.append((_BRK, [then], "shrink the heap"))
        return lost

    def _forbid(self, injector: Injector, change: Change, now: Region) -> None:
        """Protect what goes: that is refused for what munmap(2) would be refused for, a seal (mseal(2))
        or too many mappings once it is cut off from its neighbours."""
        arguments = [change.start, change.size]
        what = f"remove the mapping at {change.start:#x}"
        undo = (_MPROTECT, [*arguments, protection(now)], "give access back")
        self._call(injector, (_MPROTECT, [*arguments, 0], what), undo)
        self.changed += 1

    def _protect(self, injector: Injector, change: Change, now: Region, then: Region) -> None:
        arguments = [change.start, change.size]
        what = f"protect the memory at {change.start:#x}"
        wanted = protection(then)
        if now.shared and not wanted & 2 and protection(now) & 2:
            # It has to be written first; that it is not sealed shows now.
            self._last.append((_MPROTECT, [*arguments, wanted], what))
            wanted = protection(now)
        undo = (_MPROTECT, [*arguments, protection(now)], "give access back")
        self._call(injector, (_MPROTECT, [*arguments, wanted], what), undo)
        self.changed += 1

    def _set_aside(self, injector: Injector, change: Change) -> None:
        """Move what is in the way to a place of its own, from where it can come back."""
        size, what = change.size, f"move the mapping at {change.start:#x} aside"
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
        # With room to begin where a huge page may.
        room = injector.call(_MMAP, [0, size + _HUGE, 0, flags, -1, 0], what)
        remove: Call = (_MUNMAP, [room, size + _HUGE], "remove what was set aside")
        self._undo.append(remove)
        place = -(-room // _HUGE) * _HUGE
        how = _MREMAP_MAYMOVE | _MREMAP_FIXED
        self._call(
            injector,
            (_MREMAP, [change.start, size, size, how, place], what),
            (_MREMAP, [place, size, size, how, change.start], "move a mapping back"),
        )
        self._last.append(remove)

    def _map(self, injector: Injector, change: Change) -> None:
        then = change.then
        assert then is not None
        where = f"map {then.name or 'memory'} at {change.start:#x}"
        flags = _MAP_FIXED_NOREPLACE | (_MAP_SHARED if then.shared else _MAP_PRIVATE)
        undo: Call = (_MUNMAP, [change.start, change.size], "remove a mapping")
        self.changed += 1
        if then.anonymous:
            flags |= _MAP_ANONYMOUS | _MAP_NORESERVE
            flags |= _MAP_GROWSDOWN if then.name == "[stack]" else 0
            arguments = [change.start, change.size, protection(then), flags, -1, 0]
            self._call(injector, (_MMAP, arguments, where), undo)
            return
        offset = then.offset + change.start - then.start
        number = self._descriptor_of(then)
        opened = number is None
        if number is None:
            number = self._open(injector, then)
        try:
            arguments = [change.start, change.size, protection(then), flags, number, offset]
            self._call(injector, (_MMAP, arguments, where), undo)
        finally:
            if opened:
                injector.call(_CLOSE, [number], "close a file")

    def _open(self, injector: Injector, region: Region) -> int:
        """Open a file in the target; its name goes below the stack pointer for the time of the call."""
        state = next(t for t in self.tracee.threads if not t.worker)
        name = os.fsencode(region.name) + b"\0"
        stack = int.from_bytes(state.regs[152:160], "little")
        place = (stack - 128 - len(name)) & ~15  # below the red zone
        try:
            saved = os.pread(self.memory, len(name), place)
            os.pwrite(self.memory, name, place)
        except OSError as error:
            raise TargetError(f"cannot open {region.name} in process {self.pid}: no stack") from error
        try:
            mode = os.O_RDWR if region.shared and "w" in region.permissions else os.O_RDONLY
            return injector.call(_OPENAT, [_AT_FDCWD, place, mode | os.O_CLOEXEC, 0], f"open {region.name}")
        finally:
            os.pwrite(self.memory, saved, place)
