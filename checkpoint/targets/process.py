"""A live process as a source of epochs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from checkpoint.elf import NT_AUXV, Notes, file_note, note
from checkpoint.facts import ProcessFacts, TargetFacts
from checkpoint.heads import heads_note
from checkpoint.once import Once
from checkpoint.rollback.attributes import Recorder
from checkpoint.source import Handed, nothing_lent
from checkpoint.targets.described import Described, MadeOf, process_facts
from checkpoint.targets.exec import EXEC_POLL, through_exec
from checkpoint.targets.kernel_state import Reader
from checkpoint.targets.mapped import IN_FLIGHT, mapped_files, named_files, warnings_for
from checkpoint.targets.refusals import check_target
from checkpoint.targets.stops import Stops
from uffdtrack import (
    AddressSpace,
    Pending,
    Process,
    Region,
    Rhythm,
    Runs,
    Series,
    Tracee,
    Window,
    proc_read,
)
from uffdtrack.closing import Closing
from uffdtrack.errors import (
    NewMemoryError,
    PermissionDeniedError,
    StopTimeoutError,
    TargetBusyError,
    TargetError,
    TargetGoneError,
    TargetRefusedError,
    UffdtrackError,
)

T = TypeVar("T")


class Net(Protocol):
    """Holds what a process sends; see checkpoint/replication/held_net.py."""

    def mark(self) -> None: ...
    def taken(self) -> Callable[[], None]: ...


class ProcessTarget(Closing):
    """A process that is being checkpointed. Closing it takes every trap away; the process runs on.

    Attributes:
        wake: descriptors that are readable when a session has something else to do than to take windows.
        net: what it sends is held until its epochs are safe; None: it is not.
    """

    wake: Sequence[int] = ()

    def __init__(
        self, pid: int, engine: str = "scan", max_dirty: int | None = None, follow_shared: bool = False
    ) -> None:
        """Attach to a process that `check_target` has passed.

        Args:
            engine, max_dirty, follow_shared: see `AddressSpace.attach`.
        """
        self.pid = pid
        self.engine = engine
        self.max_dirty = max_dirty
        self.behind = False
        self.follow_shared = follow_shared
        self.rhythm = Rhythm()
        self.net: Net | None = None
        self._pending = Pending()
        self.process = Process(pid)
        self._warned: set[str] = set()
        self._file_note, self._named_files, self._warnings = (
            Once(file_note), Once(named_files), Once(warnings_for),
        )  # fmt: skip
        try:
            self.tracee = Tracee(pid)
            self._stops = Stops(self.tracee, self.process)
            self._attach()
        except BaseException:
            self.close()
            raise

    # -- which memory it has ----------------------------------------------------------------------

    def attach(self) -> None:
        """Attach to the memory that it has now: exec has changed it, and maybe the kind of program.

        Raises:
            TargetBusyError: try again later.
        """
        if self._attached:
            return
        self.space.close()
        self.tracee.settle(5)
        self._stops.await_visitor()
        try:
            self._attach()
        except (PermissionDeniedError, TargetRefusedError) as error:
            why = self._stops.why_not_attached(error, self.space)
            if not why:
                raise
            raise why from error
        self._stops.attached()

    def _attach(self) -> None:
        def attempt() -> None:
            check_target(self.pid)
            self.space = AddressSpace.attach(self.pid, self.engine, self.max_dirty, self.follow_shared)

        through_exec(self.process, attempt)
        self._objects = Reader(self.pid, lambda: (process_facts(self.process), proc_read(self.pid, "auxv")))
        self._attributes = Recorder(self.pid)
        self._described: Described | None = None
        self._series = Series(self.space, self.tracee)
        self._lend: Callable[[], Callable[[], None]] = self.space.lend
        self._attached = True

    def lose(self) -> bool:
        """Its memory has gone. Returns whether that was exec: then the next base is of its new memory."""
        self._attached = False
        return not self.ended(EXEC_POLL)

    def persist(self, attempt: Callable[[], T], again: Callable[[], None]) -> T:
        def begin_anew() -> None:
            self._attached = False
            again()

        late = TargetBusyError("it calls exec faster than a base is taken")
        return through_exec(self.process, attempt, begin_anew, late)

    def ended(self, seconds: float = 0) -> bool:
        """Whether the process has ended, or does within some seconds."""
        return self.process.has_ended(seconds)

    # -- Source -----------------------------------------------------------------------------------

    @property
    def pending(self) -> Pending:
        """What was harvested and not handed over; windows that were taken ahead are not, any more."""
        self._series.give_up(self._pending)
        with contextlib.suppress(UffdtrackError):  # the next stop says it again, if it is still so
            self._series.fail(self._pending)
        return self._pending

    @property
    def ahead(self) -> int:
        return self._series.ahead

    def harvest(self, everything: bool) -> tuple[Runs, Runs]:
        if everything:
            self.attach()
            self._pending = Pending()
        return self._stopping(lambda: self.space.harvest(self.tracee, everything))

    def postpone(self, runs: Runs, reset: Runs) -> None:
        self.pending.add(runs, reset)

    def copy(self, runs: Runs) -> tuple[Runs, Runs, memoryview]:
        self.space.copy(runs)
        return self.space.split_zero(runs)

    def window(self) -> Window:
        if self.net:
            self.net.mark()
        series, pending = self._series, self._pending
        if not pending.is_empty:
            series.give_up(pending)
        if series.has_failed:
            self._stopping(lambda: series.fail(pending))
        if not series.ahead:
            if self.rhythm.most == 1 or not pending.is_empty:
                self._lend = self.space.lend
                return self._stopping(lambda: self.space.window(self.tracee, pending, self.behind))
            self._stopping(lambda: series.fill(pending, self.rhythm, self.wake, self.behind))
        self._lend = series.lend
        return series.next(pending)

    def hand_over(self, at_once: bool = False) -> Handed:
        release = nothing_lent if at_once else self._lend()
        handed = Handed(self._pending, release, self.net.taken() if self.net else nothing_lent)
        self._pending = Pending()
        return handed

    def take_back(self, pending: Pending) -> None:
        self.pending.merge(pending)

    def was_changed(self) -> None:
        """Somebody has changed its mappings and their attributes: read these anew for the next epoch."""
        self._attributes = Recorder(self.pid)
        self._described = None

    def settle(self, timeout: float) -> bool:
        return self.tracee.settle(timeout)

    def _stopping(self, work: Callable[[], T]) -> T:
        """Do work that stops it, if it should be stopped now; else a base would be copied for nothing."""
        self.check_stop()
        try:
            return work()
        except (PermissionDeniedError, StopTimeoutError) as error:
            why = self.why_not_stopped(error)
            if not why:
                raise
            raise why from error

    def check_stop(self) -> None:
        """Raises: TargetBusyError: we should not stop it now."""
        self._stops.check()

    def why_not_stopped(self, error: PermissionDeniedError | StopTimeoutError) -> TargetError | None:
        """See `Stops.why_not`."""
        return self._stops.why_not(error, self.space)

    # -- what an image says of it -----------------------------------------------------------------

    def share_time(self, sharers: int) -> None:
        """Share the time for reading /proc among so many processes."""
        self._attributes.budget.sharers = self._objects.budget.sharers = sharers

    def new_warnings(self, regions: list[Region], files: Iterable[str]) -> list[str]:
        """Warnings about what a checkpoint may miss that were not given before.

        Args:
            files: what /proc/PID/fd says of its descriptors.
        """
        found = dict(self._warnings(regions))
        if "anon_inode:[io_uring]" in files:
            found["io_uring"] = IN_FLIGHT.format("io_uring")
        new = [text for name, text in found.items() if name not in self._warned]
        self._warned |= found.keys()
        return new

    def describe(self, window: Window) -> tuple[Notes, TargetFacts]:
        last = self._described
        if not self._series.is_last and last and window.regions is last.made_of[0]:
            return self._repeated(window, last)
        # Not the attributes': a rollback gives those back, where it only compares the state in the kernel.
        self._objects.budget.behind = self.behind
        try:
            objects, (facts, auxv) = self._objects.read(window.regions)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetGoneError(f"process {self.pid} has ended") from error
        if self.space.is_gone and not self.ended():
            # All this was read after the stop: it may be of another program than what was copied in it.
            raise NewMemoryError(f"process {self.pid} has replaced its program (exec)")
        attributes = self._attributes.facts(window.regions)
        made_of = window.regions, objects, attributes
        if not last or any(one is not other for one, other in zip(last.made_of, made_of, strict=True)):
            last = self._described = self._describe(made_of, facts, auxv)
            rest = last.notes + heads_note(window.heads) if window.heads else last.notes
            return Notes(window.threads, facts, rest), last.facts
        return self._repeated(window, last)

    def _repeated(self, window: Window, last: Described) -> tuple[Notes, TargetFacts]:
        if last.facts.warnings:
            last.facts = replace(last.facts, warnings=[])
        rest = last.notes + heads_note(window.heads) if window.heads else last.notes
        return Notes(window.threads, last.facts.process, rest), last.facts

    def _describe(self, made_of: MadeOf, facts: ProcessFacts, auxv: bytes) -> Described:
        """Mapped files are looked at when their mappings change, or the descriptors are read."""
        regions, objects, (attributes, unknown) = made_of
        heap = [r.end for r in regions if r.name == "[heap]"]
        described = TargetFacts(
            process=facts,
            files=mapped_files(self._named_files(regions), self.pid),
            heap_end=max(heap, default=0),
            attributes=attributes,
            attributes_unknown=unknown,
            objects=objects,
            warnings=self.new_warnings(regions, [d.target for d in objects.descriptors.values()]),
        )
        return Described(made_of, note(b"CORE", NT_AUXV, auxv) + self._file_note(regions), described)

    def close(self) -> None:
        """Idempotent."""
        if hasattr(self, "space"):
            self.space.close()
        if hasattr(self, "tracee") and self.process.pidfd >= 0:
            self.tracee.settle(2)
            self.tracee.close()
        self.process.close()
