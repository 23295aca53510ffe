"""Putting the mappings of a stopped process back, by system calls in its name.

Each step can be taken back until `commit`, and `commit` does only what cannot fail any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from checkpoint.chain import View
from checkpoint.errors import RollbackRefusedError
from checkpoint.image import NT_AUXV
from checkpoint.rollback.attributes import (
    Flags,
    Recorded,
    cannot_be_made,
    given_by_mmap,
    given_to_all,
    keeps_advice,
    mmap_flags,
    steps,
)
from checkpoint.rollback.layout import Change, Layout, heap_end, protection
from checkpoint.targets.mapped import mapped_files
from uffdtrack import PAGE, Injector, Region, Tracee, proc_read, task_directory
from uffdtrack.errors import TargetError

_MMAP, _MPROTECT, _MUNMAP, _BRK, _MREMAP, _CLOSE, _OPENAT = 9, 10, 11, 12, 25, 3, 257
_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 1, 2, 0x20, 0x100
_MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0x4000, 0x100000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_PRCTL, _PR_GET_MDWE, _PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 157, 66, 0x53564D41, 0
_AT_FDCWD = -100
_HUGE = 2 << 20
_START_BRK = 44  # field 47 of proc_pid_stat(5), counted from the state on

Call = tuple[int, list[int], str]
"""Number, arguments, and what it does in words."""


def page_end(address: int) -> int:
    return -(-address // PAGE) * PAGE


def start_break(pid: int) -> int:
    """Where the heap begins: the program break of a process that has none yet."""
    text = proc_read(pid, "stat").decode(errors="replace")
    return int(text[text.rindex(")") + 2 :].split()[_START_BRK])


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


def wiped_in_children(view: View) -> list[str]:
    """Memory under MADV_WIPEONFORK keeps its contents in the process itself.

    So, other than that of MAP_DROPPABLE, it may not be wiped here, though it mostly is the state of a
    generator of random numbers.
    """
    places = [
        f"{start:#x}"
        for start, _, flags in Recorded.of(view.epoch.meta).attributes.ranges
        if "wf" in flags and "dp" not in flags
    ]
    if not places:
        return []
    return [
        f"memory that is wiped in children (MADV_WIPEONFORK, at {', '.join(places[:3])}) is that of the "
        "epoch: a generator of random numbers that has its state there gives the same ones again"
    ]


class Mappings:
    """The mappings of one stopped process, on their way to those of a view.

    Attributes:
        layout: what is mapped, and what was.
        warnings: what is not as it was, in words.
        changed: how many mappings were made, removed, replaced or protected.
    """

    def __init__(self, pid: int, view: View) -> None:
        """What can be asked while the target runs: a file's own system may wait for the target."""
        self.pid = pid
        self.view = view
        self.warnings: list[str] = []
        self.changed = 0
        self.layout = self._found = Layout(pid, view.epoch)
        self._files = mapped_files(view.epoch.regions, pid)
        self.warnings += wiped_in_children(view)
        self._open_files: dict[tuple[int, int], list[tuple[int, int]]] | None = None
        self._no_new_code = False
        self._names: list[tuple[int, int, str]] = []
        self._undo: list[Call] = []
        self._last: list[Call] = []

    def stopped(self, tracee: Tracee, memory: int) -> None:
        """The target stands from now on.

        Args:
            memory: its memory, /proc/PID/mem, open for reading and writing.
        """
        self.tracee = tracee
        self.memory = memory
        self.layout = self._found = Layout(self.pid, self.view.epoch, self.layout)

    # -- checks: nothing is changed --------------------------------------------------------------

    def check(self) -> None:
        """Raises: RollbackRefusedError: what is not mapped any more cannot be mapped again."""
        epoch = self.view.epoch
        fixed = [
            [(r.start, r.end) for r in rs if r.name == "[vdso]"]
            for rs in (self.layout.regions, epoch.regions)
        ]
        # Without randomisation of addresses the vdso is where it was. Then the auxiliary vector tells (the
        # place of the headers, of the name), or that nothing of the program's file is mapped any more.
        auxv = {data for name, kind, data in epoch.notes if (name, kind) == (b"CORE", NT_AUXV)}
        if (
            fixed[0] != fixed[1]
            or (auxv and proc_read(self.pid, "auxv") not in auxv)
            or self._other_program()
        ):
            raise RollbackRefusedError("the process has replaced its program (exec) since that epoch")
        self._look_at_code()
        files: dict[str, list[int]] = epoch.meta["files"]
        for change in self.layout.differ:
            then = change.then
            if not then or change.kept:
                continue
            if reason := cannot_be_made(then, change.had):
                raise RollbackRefusedError(f"the mapping at {then.start:#x} cannot be made again: {reason}")
            if then.anonymous or self._descriptor_of(then) is not None:
                continue
            # Contents of a shared mapping are in the image: that it is that file is enough.
            was, found, known = files.get(then.name), self._files.get(then.name), 2 if then.shared else 4
            if not found or not was or found[:known] != was[:known]:
                raise RollbackRefusedError(
                    f"{then.name or 'a shared mapping'} at {then.start:#x} is not mapped any more, and "
                    "the file is not what it was or cannot be opened"
                )
        changed = {name for name, was in files.items() if self._files.get(name) != was}
        if changed:
            kept = {c.then.name for c in self.layout.changes if c.kept and c.then and c.then.file_backed}
            self.warnings += [f"the mapped file {name} has changed since" for name in sorted(changed & kept)]

    def _other_program(self) -> bool:
        """Whether nothing of the epoch's program file is mapped any more."""
        exe = self.view.epoch.meta["process"].get("exe")
        then = {(r.device, r.inode) for r in self.view.epoch.regions if exe and r.name == exe}
        return bool(then) and not then & {(r.device, r.inode) for r in self.layout.regions}

    def _look_at_code(self) -> None:
        """Under PR_SET_MDWE (Linux 6.3) mprotect(2) cannot give the right to execute, nor give it back.

        There, what has to change it is made anew, and what goes is moved aside instead of protected.
        """
        code = [c for c in self.layout.differ if any("x" in r.permissions for r in (c.now, c.then) if r)]
        if not code:
            return
        try:
            with self.tracee.injector() as injector:
                arguments = [_PR_GET_MDWE, 0, 0, 0, 0]
                self._no_new_code = bool(injector.call(_PRCTL, arguments, "ask for PR_GET_MDWE"))
        except TargetError:
            return  # this kernel does not know it
        if self._no_new_code:
            self._make_code_anew()
            self.layout.changes = [*self.layout.changes]

    def _make_code_anew(self) -> None:
        for change in self.layout.differ:
            if (
                change.now
                and change.then
                and ("x" in change.now.permissions) != ("x" in change.then.permissions)
            ):
                change.kept = False

    def _descriptor_of(self, region: Region) -> int | None:
        """An open file of the target that is the one behind a mapping, and may be mapped as that was."""
        if self._open_files is None:
            self._open_files = open_files(self.pid, {r.inode for r in self.view.epoch.regions})
        major, minor = (int(part, 16) for part in region.device.split(":"))
        for number, flags in self._open_files.get((os.makedev(major, minor), region.inode), []):
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
        self._undo, self._last, self._names = [], [], []
        self.layout = self._found
        shrinks = self._move_break(injector)
        for change in self.layout.differ:
            now, then = change.now, change.then
            self.tracee.check_time()
            if not now:
                self._map(injector, change)
            elif then and not change.kept:
                self._set_aside(injector, change)
                self._map(injector, change)
            elif not then:
                self.changed += 1
                shrinking = shrinks[0] <= change.start < shrinks[1]
                if "x" in now.permissions and not shrinking and self._no_new_code:
                    self._set_aside(injector, change)
                    continue
                self._forbid(injector, change, now)
                if not shrinking:
                    self._last.append((_MUNMAP, [change.start, change.size], f"unmap {change.start:#x}"))
            else:
                self._protect(injector, change, now, then)

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        differ = self.layout.differ or self.view.epoch.meta["heap_end"] != heap_end(self.layout.regions)
        return bool(differ or self._undo or self._last)

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
                self.warnings.append(f"{reason}: that is left as it is")
        for start, size, name in self._names:
            try:
                self._give_name(injector, start, size, name)
            except TargetError as error:
                self.warnings.append(str(error))
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
        if recorded == heap_end(self.layout.regions):
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
            self.layout = Layout(self.pid, self.view.epoch, self.layout)
            if self._no_new_code:
                self._make_code_anew()
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

    def _protect(self, injector: Injector, change: Change, now: Region, then: Region) -> None:
        arguments = [change.start, change.size]
        what = f"protect the memory at {change.start:#x}"
        has, wanted = protection(now), protection(then)
        self.changed += 1
        if has != wanted:
            given = wanted
            if now.shared and not wanted & 2 and has & 2:
                # It has to be written first; that it is not sealed shows now.
                self._last.append((_MPROTECT, [*arguments, wanted], what))
                given = has
            undo = (_MPROTECT, [*arguments, has], "give access back")
            self._call(injector, (_MPROTECT, [*arguments, given], what), undo)
            wanted = given
        if change.has is not None and change.had is not None:
            self._adjust(injector, change, wanted, change.has, change.had)
        if change.renamed:
            self._name(change)

    def _adjust(self, injector: Injector, change: Change, access: int, has: Flags, wanted: Flags) -> None:
        """Give a mapping the attributes that it had."""
        what = f"give the memory at {change.start:#x} the attributes that it had"
        if keeps_advice(has, wanted):
            self.warnings.append(f"the advice on huge pages for the memory at {change.start:#x} stays")
        for forth, back in steps(change.start, change.size, access, has, wanted):
            if back is None:
                self._last.append((*forth, what))
            else:
                self._call(injector, (*forth, what), (*back, "take attributes back"))

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
        undo: Call = (_MUNMAP, [change.start, change.size], "remove a mapping")
        access = protection(then)
        self.changed += 1
        if then.anonymous:
            flags = _MAP_FIXED_NOREPLACE | _MAP_ANONYMOUS | mmap_flags(change.had)
            flags |= _MAP_GROWSDOWN if then.name == "[stack]" else 0
            arguments = [change.start, change.size, access, flags, -1, 0]
            self._call(injector, (_MMAP, arguments, where), undo)
        else:
            self._map_file(injector, change, then, where, undo)
        if change.had is not None:
            self._adjust(injector, change, access, given_by_mmap(change.had), change.had)
            for given in given_to_all(self.layout.has, change.had) if self.layout.has else []:
                self._adjust(injector, change, access, given, frozenset())
        self._name(change)

    def _map_file(self, injector: Injector, change: Change, then: Region, where: str, undo: Call) -> None:
        flags = _MAP_FIXED_NOREPLACE | (_MAP_SHARED if then.shared else _MAP_PRIVATE)
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

    def _name(self, change: Change) -> None:
        """A name that prctl(2), PR_SET_VMA_ANON_NAME, gave: "[anon:NAME]" or "[anon_shmem:NAME]" in maps."""
        name = change.then.name if change.then else ""
        given = name[name.index(":") + 1 : -1] if name.startswith("[anon") else ""
        if given or change.renamed:
            self._names.append((change.start, change.size, given))

    def _give_name(self, injector: Injector, start: int, size: int, name: str) -> None:
        def call(place: int) -> int:
            arguments = [_PR_SET_VMA, _PR_SET_VMA_ANON_NAME, start, size, place if name else 0]
            return injector.call(_PRCTL, arguments, f"name the memory at {start:#x}")

        self._with_text(name, call)

    def _open(self, injector: Injector, region: Region) -> int:
        """Open a file in the target, by its name there; it has to be the one that `check` has seen."""
        task = task_directory(self.pid)
        mode = os.O_RDWR if region.shared and "w" in region.permissions else os.O_RDONLY
        root, error = os.readlink(task / "root"), TargetError(f"{region.name} is another file now")

        def call(place: int) -> int:
            arguments = [_AT_FDCWD, place, mode | os.O_CLOEXEC, 0]
            return injector.call(_OPENAT, arguments, f"open {region.name}")

        # Of a target in a chroot(2), we see names that begin with its root.
        for name in sorted({region.name, region.name.removeprefix(root.rstrip("/"))}, key=len):
            try:
                number = self._with_text(name, call)
            except TargetError as refused:
                error = refused
                continue
            s = os.stat(task / "fd" / str(number))
            if [s.st_dev, s.st_ino] == self._files.get(region.name, [])[:2]:
                return number
            injector.call(_CLOSE, [number], "close a file")
        raise error

    def _with_text(self, text: str, call: Callable[[int], int]) -> int:
        """Put a text below the stack pointer of the target for the time of a call that needs it."""
        state = next(t for t in self.tracee.threads if not t.worker)
        data = os.fsencode(text) + b"\0"
        stack = int.from_bytes(state.regs[152:160], "little")
        place = (stack - 128 - len(data)) & ~15  # below the red zone
        try:
            saved = os.pread(self.memory, len(data), place)
            os.pwrite(self.memory, data, place)
        except OSError as error:
            raise TargetError(f"cannot give process {self.pid} a name: it has no stack") from error
        try:
            return call(place)
        finally:
            os.pwrite(self.memory, saved, place)
