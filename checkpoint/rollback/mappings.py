"""Put the mappings of a stopped process back, by system calls in its name.

Each step can be undone until `commit`, and `commit` does only what can no longer fail.
"""

from __future__ import annotations

from collections.abc import Callable

from checkpoint.elf import NT_AUXV
from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.attributes import Attributes, cannot_be_made
from checkpoint.rollback.layout import SMAPS_SECONDS, Change, Layout, heap_end
from checkpoint.rollback.making import Maker, Names
from checkpoint.rollback.opening import Files, Text
from checkpoint.rollback.steps import Steps
from checkpoint.targets.mapped import mapped_files
from checkpoint.view import View
from uffdtrack import PAGE, Injector, Region, Tracee, proc_read, procfs
from uffdtrack.errors import TargetError
from uffdtrack.runs import Pages
from uffdtrack.syscalls import BRK, MUNMAP, PRCTL

_PR_GET_MDWE, _PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 66, 0x53564D41, 0
_START_BRK = 44  # field 47 of proc_pid_stat(5), counted from the state on


def page_end(address: int) -> int:
    return -(-address // PAGE) * PAGE


def start_break(pid: int) -> int:
    """Where the heap begins: the program break of a process that has none yet."""
    text = proc_read(pid, "stat").decode(errors="replace")
    return int(procfs.stat_fields_of(text)[_START_BRK])


def wiped_in_children(view: View) -> list[str]:
    """A warning that names memory under MADV_WIPEONFORK: the process itself keeps its contents.

    So, unlike MAP_DROPPABLE memory, we may not wipe it, though it mostly is the state of a
    random number generator.
    """
    places = [
        f"{start:#x}"
        for start, _, flags in Attributes.of_facts(view.epoch.facts.attributes or []).ranges
        if "wf" in flags and "dp" not in flags
    ]
    if not places:
        return []
    return [
        f"memory that is wiped in children (MADV_WIPEONFORK, at {', '.join(places[:3])}) is that of the "
        "epoch: a generator of random numbers that has its state there gives the same ones again"
    ]


class Mappings:
    """Turns the mappings of one stopped process into those of a view.

    Attributes:
        layout: the mappings of now and then.
        warnings: text about what is not as it was.
        changed: how many mappings were made, removed, replaced or protected.
    """

    def __init__(self, pid: int, view: View, patience: float = SMAPS_SECONDS) -> None:
        """Ask what we can while the target runs: a file's own file system may wait for the target.

        Args:
            patience: see `Layout`.
        """
        self._patience = patience
        self.pid = pid
        self.view = view
        self.warnings: list[str] = []
        self.changed = 0
        self.layout = self._found = Layout(pid, view.epoch)
        self._known = mapped_files(view.epoch.regions, pid)
        self._files = Files(pid, view.epoch.regions, self._known)
        self.warnings += wiped_in_children(view)
        self._no_new_code = False
        self._names: Names = []
        self._steps = Steps(pid)
        regions = self.layout.regions
        self._proven = regions if self._is_same_program(regions) else None

    def stopped(
        self, tracee: Tracee, memory: int, untrap: Callable[[Pages], None], maps: bytes | None
    ) -> None:
        """Note that the target stands from now on.

        Args:
            memory: its memory, /proc/PID/mem, open for reading and writing.
            untrap: see `Changes.untrap`.
            maps: its /proc/PID/maps of now, if that was read.
        """
        self.tracee = tracee
        self._text = Text(tracee, memory, untrap)
        self.layout = self._found = Layout(self.pid, self.view.epoch, self.layout, self._patience, maps)

    # -- checks: nothing is changed --------------------------------------------------------------

    def check(self) -> None:
        """Raises: RollbackRefusedError: we cannot map again what is no longer mapped."""
        epoch, regions = self.view.epoch, self.layout.regions
        # Without randomisation of addresses the vdso is where it was. Then the auxiliary vector tells (the
        # place of the headers, of the name), or that nothing of the program's file is mapped any more.
        auxv = {data for name, kind, data in epoch.notes if (name, kind) == (b"CORE", NT_AUXV)}
        is_same = regions is self._proven or self._is_same_program(regions)
        if not is_same or (auxv and proc_read(self.pid, "auxv") not in auxv):
            raise RollbackRefusedError("the process has replaced its program (exec) since that epoch")
        self._look_at_code()
        for change in self.layout.differ:
            if change.then and not change.kept:
                self._check_can_be_made(change, change.then)
        then = epoch.facts.files
        changed = {name for name, was in then.items() if self._known.get(name) != was}
        if changed:
            kept = {c.then.name for c in self.layout.changes if c.kept and c.then and c.then.file_backed}
            self.warnings += [f"the mapped file {name} has changed since" for name in sorted(changed & kept)]

    def _check_can_be_made(self, change: Change, then: Region) -> None:
        if reason := cannot_be_made(then, change.had):
            raise RollbackRefusedError(f"the mapping at {then.start:#x} cannot be made again: {reason}")
        if then.anonymous or self._files.descriptor_of(then) is not None:
            return
        # Contents of a shared mapping are in the image: that it is that file is enough.
        was, found = self.view.epoch.facts.files.get(then.name), self._known.get(then.name)
        known = 2 if then.shared else 4
        if not found or not was or found[:known] != was[:known]:
            raise RollbackRefusedError(
                f"{then.name or 'a shared mapping'} at {then.start:#x} is not mapped any more, and "
                "the file is not what it was or cannot be opened"
            )

    def _is_same_program(self, regions: list[Region]) -> bool:
        """Whether the vdso is where it was, and something of the epoch's program file, if any, is mapped."""
        exe, then = self.view.epoch.facts.process.exe, self.view.epoch.regions
        fixed = [[(r.start, r.end) for r in rs if r.name == "[vdso]"] for rs in (regions, then)]
        files = {(r.device, r.inode) for r in then if exe and r.name == exe}
        return fixed[0] == fixed[1] and (not files or any((r.device, r.inode) in files for r in regions))

    def _look_at_code(self) -> None:
        """Under PR_SET_MDWE (Linux 6.3) mprotect(2) cannot give the right to execute, nor give it back.

        There, we make a mapping anew that has to gain or lose it, and move one that goes aside instead of
        protecting it.
        """
        code = [c for c in self.layout.differ if any("x" in r.permissions for r in (c.now, c.then) if r)]
        if not code:
            return
        try:
            with self.tracee.injector() as injector:
                arguments = [_PR_GET_MDWE, 0, 0, 0, 0]
                self._no_new_code = bool(injector.call(PRCTL, arguments, "ask for PR_GET_MDWE"))
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

    # -- changes that can be taken back ----------------------------------------------------------

    def make(self, injector: Injector) -> None:
        """Do everything that can fail. Memory that goes is not given up yet.

        Raises:
            UffdtrackError: a step has failed; `take_back` undoes those before it.
        """
        self.changed = 0
        self._steps = Steps(self.pid)
        self.layout = self._found
        shrinks = self._move_break(injector)
        maker = Maker(injector, self.layout, self._files, self._text, self._steps, self.warnings)
        self._names = maker.names
        for change in self.layout.differ:
            now, then = change.now, change.then
            self.tracee.check_time()
            if not now:
                maker.map(change)
            elif then and not change.kept:
                maker.set_aside(change)
                maker.map(change)
            elif not then:
                self.changed += 1
                shrinking = shrinks[0] <= change.start < shrinks[1]
                if "x" in now.permissions and not shrinking and self._no_new_code:
                    maker.set_aside(change)
                    continue
                maker.forbid(change, now)
                if not shrinking:
                    self._steps.last.append((MUNMAP, [change.start, change.size], f"unmap {change.start:#x}"))
            else:
                maker.protect(change, now, then)
        self.changed += maker.changed

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        differ = self.layout.differ or self.view.epoch.facts.heap_end != heap_end(self.layout.regions)
        return bool(differ or self._steps.undo or self._steps.last)

    @property
    def begun(self) -> bool:
        """Whether there is anything to take back."""
        return bool(self._steps.undo)

    def take_back(self, injector: Injector) -> None:
        """Undo all steps. Raises: TargetError: we could not undo all of them."""
        self._steps.take_back(injector)

    def commit(self, injector: Injector) -> None:
        """Give up memory that goes. `warnings` names steps that fail here all the same."""
        self.warnings += self._steps.commit(injector)
        for start, size, name in self._names:
            try:
                self._give_name(injector, start, size, name)
            except TargetError as error:
                self.warnings.append(str(error))

    def _move_break(self, injector: Injector) -> tuple[int, int]:
        """Grow the heap now, or let it shrink at the end; returns the range that it will lose.

        The heap comes and goes by brk(2) alone: munmap(2) would leave the break where it was, and the
        next sbrk(3) would hand out addresses where nothing is.
        """
        recorded = self.view.epoch.facts.heap_end
        if recorded == heap_end(self.layout.regions):
            return 0, 0
        then = recorded or start_break(self.pid)
        if not then:
            raise RollbackRefusedError("where the heap of the process begins is not known")
        now = injector.call(BRK, [0], "ask for the program break")
        if page_end(then) > page_end(now):
            if injector.call(BRK, [then], "grow the heap") != then:
                raise RollbackRefusedError("the heap cannot grow to where it ended at that epoch")
            self._steps.undo.append((BRK, [now], "shrink the heap"))
            self.changed += 1
            self.layout = Layout(self.pid, self.view.epoch, self.layout, self._patience)
            if self._no_new_code:
                self._make_code_anew()
        if page_end(then) >= page_end(now):
            return 0, 0
        lost = page_end(then), page_end(now)
        if any(r.start < lost[1] and lost[0] < r.end for r in self.view.epoch.regions):
            raise RollbackRefusedError("the heap has grown over what was mapped at that epoch")
        self._steps.last.append((BRK, [then], "shrink the heap"))
        return lost

    def _give_name(self, injector: Injector, start: int, size: int, name: str) -> None:
        def call(place: int) -> int:
            arguments = [_PR_SET_VMA, _PR_SET_VMA_ANON_NAME, start, size, place if name else 0]
            return injector.call(PRCTL, arguments, f"name the memory at {start:#x}")

        self._text.lend(name, call)
