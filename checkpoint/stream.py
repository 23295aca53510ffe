"""The epochs of one source on their way into one sink: the base, and what follows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from checkpoint.epoch import Epoch, EpochRow, Membership, Times, since
from checkpoint.facts import Elsewhere
from checkpoint.once import Once
from checkpoint.precopy import Round, precopy, send
from checkpoint.sink import Draft, Sink
from checkpoint.source import Handed, Source
from uffdtrack import Pending, Region, Window
from uffdtrack.runs import size_of

QUIET = 4 << 20
"""If so few bytes were dirtied while the base was copied, another round finds no less.

The stop copies it if there is no more in all."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How punctual an epoch was; see `EpochRow`."""

    waited_us: float = 0.0
    late: int = 0
    skipped: int = 0
    skip_reason: str = ""


ON_TIME = Circumstances()


@dataclass(frozen=True, slots=True)
class Taken:
    """An epoch that is not written yet.

    Attributes:
        begun: of a base, the draft that has what was copied while the target ran.
    """

    epoch: Epoch
    handed: Handed
    begun: Draft | None


class Part:
    """A stream's part in one epoch of its session: taken, then written, then safe.

    Attributes:
        row: it has the digest when the epoch is written, `write_us` when it is safe.
        draft: None before it is written, and of an epoch that is safe already.
        size: bytes of contents that it holds until it is written.
        member: in a tree, for the row.
        at_once: it is written before anything else is done.
        started: when the target ran on, in time.perf_counter().
    """

    member: Membership | None = None
    at_once = False

    def __init__(self, stream: Stream, row: EpochRow, taken: Taken | None) -> None:
        self.stream = stream
        self.row = row
        self.draft: Draft | None = None
        self.size = len(taken.epoch.window.contents) if taken else 0
        self._safe = False
        self._taken = taken
        self._handed = taken.handed if taken else None
        self.started = taken.epoch.window.ran if taken else time.perf_counter()

    def write(self, elsewhere: list[Elsewhere] | None = None) -> None:
        """Write it, until only `make_safe` is missing.

        Args:
            elsewhere: see `Epoch`.

        Raises:
            StorageError: we could not.
        """
        taken, self._taken = self._taken, None
        if not taken:
            return
        self.draft = taken.begun
        try:
            self.draft = self.draft or self.stream.sink.begin()
            epoch = replace(taken.epoch, elsewhere=elsewhere) if elsewhere is not None else taken.epoch
            self.row = self.draft.finish(epoch)
            self.row.member = self.member
        finally:
            taken.handed.release()

    def keep(self, last: bool) -> None:
        """Note that it is safe. `last`: it is the last one of its group."""
        self._safe = True
        if self._handed:
            self._handed.safe()
        if self.draft:
            self.draft.committed(last)
            self.row.write_us = since(self.started)
            self.stream.kept(self.row.base)

    def drop(self) -> None:
        """Remove what was written of it, unless it is safe. In any thread."""
        if self._taken:
            self._taken.handed.release()
        if self.draft and not self._safe:
            self.draft.withdraw()

    def take_back(self) -> None:
        """Its session's epoch was dropped: the next has what its row tells, and its pages, if not safe."""
        self.stream.untold = [*self.row.warnings, *self.stream.untold]
        if self._handed and not self._safe:
            self.stream.returned(self._handed.pending, self._taken.begun if self._taken else None)


class Stream:
    """One source's epochs.

    Attributes:
        untold: warnings that no row has yet.
    """

    def __init__(self, source: Source, sink: Sink, interrupted: Callable[[], bool]) -> None:
        """Args:
        interrupted: called while a base is copied; if it returns True the base is dropped.
        """
        self.source = source
        self.sink = sink
        self.interrupted = interrupted
        self.untold: list[str] = []
        # Each is changed by one thread alone.
        self._taken = self._safe = 0
        self._based = False
        self._begun: Draft | None = None
        self._left_out = Once(_left_out)

    @property
    def in_base(self) -> bool:
        """Whether a base has begun that the next `part` makes whole."""
        return self._begun is not None

    @property
    def in_flight(self) -> int:
        """How many epochs were taken, and are not safe yet."""
        return self._taken - self._safe

    @property
    def is_due(self) -> bool:
        """Whether the next epoch is a base that has not begun; what came before has to be safe then."""
        return not self._based and not self._begun

    def prepare(self) -> None:
        """If a base is due: arm, and copy while the target runs. The window then has to copy only what it
        wrote meanwhile, and `part` makes the base whole.

        Raises:
            SessionInterrupted, StorageError, TargetBusyError, NewMemoryError, TargetGoneError: as they say;
                the base is dropped.
        """
        if not self.is_due:
            return
        rounds = 0

        def enough(done: Round) -> bool:
            nonlocal rounds
            rounds = done.number
            return _is_little(done)

        self._begun = self.sink.begin(base=True)
        try:
            rest, reset = precopy(self.source, self._begun, enough, self.interrupted)
            if rounds and size_of(rest) <= QUIET:  # then the stop has only what is written from now on
                send(self.source, self._begun, rest, self.interrupted)
            else:  # little in all, and exec may come; or much, and it would be written once more meanwhile
                self.source.postpone(rest, reset)
        except BaseException:
            self.abandon()
            raise

    def part(self, window: Window, circumstances: Circumstances = ON_TIME, at_once: bool = False) -> Part:
        """Make an epoch of the source's last window; it still has to be written.

        Args:
            at_once: that will be done before anything else.

        Raises:
            TargetGoneError, NewMemoryError: the target has ended, or called exec, meanwhile.
        """
        begun, self._begun = self._begun, None
        try:
            notes, facts = self.source.describe(window)
            self.untold = [*self.untold, *facts.warnings]
            row = self._row(window, begun is not None, circumstances)
            handed = self.source.hand_over(at_once)
        except BaseException:
            if begun:
                begun.abort()
            raise
        self.untold = []
        self._taken += 1
        part = Part(self, row, Taken(Epoch(row, window, notes, facts), handed, begun))
        part.at_once = at_once
        return part

    def kept(self, base: bool) -> None:
        """Note that an epoch is safe."""
        if base:
            self._based = True
        self._safe += 1

    def returned(self, pending: Pending, begun: Draft | None) -> None:
        """An epoch was dropped: the next one has its pages; see `Part`."""
        self._taken -= 1
        self.source.take_back(pending)
        if not self.in_flight:
            self.sink.fall_back()
        self._begun = begun

    def rebase(self) -> None:
        """Make the next epoch a base, which is copied while the target runs."""
        self.abandon()
        self._based = False

    def abandon(self) -> None:
        """Drop a base that has begun. Idempotent."""
        if self._begun:
            self._begun.abort()
            self._begun = None

    def _row(self, window: Window, base: bool, circumstances: Circumstances) -> EpochRow:
        left_out, left_out_bytes = self._left_out(window.regions)
        return EpochRow(
            epoch=-1,
            base=base,
            pid=self.source.pid,
            engine=self.source.engine,
            pages=0,
            bytes=0,
            scanned=window.scanned,
            times=Times.of(window),
            threads=len(window.threads),
            regions=len(window.regions),
            compared=window.compared,
            unreadable=window.unreadable,
            left_out=left_out,
            left_out_bytes=left_out_bytes,
            warnings=self.untold,
            waited_us=circumstances.waited_us,
            late=circumstances.late,
            skipped=circumstances.skipped,
            skip_reason=circumstances.skip_reason,
            time_ns=window.time_ns,
            max_dirty=self.source.max_dirty,
        )


def _is_little(done: Round) -> bool:
    return done.left <= QUIET or (done.number > 0 and done.left > done.sent // 2)


def _left_out(regions: list[Region]) -> tuple[int, int]:
    """How many mappings are left out, and of how many bytes."""
    sizes = [r.size for r in regions if r.left_out]
    return len(sizes), sum(sizes)
