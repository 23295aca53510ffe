"""The epochs of one source on their way into one sink: the base, and what follows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from checkpoint.epoch import Epoch, EpochRow, Times
from checkpoint.facts import Elsewhere
from checkpoint.once import Once
from checkpoint.precopy import Round, precopy
from checkpoint.sink import Draft, Sink, make_safe
from checkpoint.source import Source
from uffdtrack import Region, Window

QUIET = 4 << 20
"""If so few bytes were dirtied while the base was copied, the stop may as well copy them."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How punctual an epoch was; see `EpochRow`."""

    late: int = 0
    skipped: int = 0
    skip_reason: str = ""


ON_TIME = Circumstances()


class Part:
    """A stream's part in one epoch of its session.

    Attributes:
        row: it has `write_us` when the epoch is safe.
        draft: None for an epoch that is safe already.
    """

    def __init__(self, stream: Stream, row: EpochRow, draft: Draft | None, started: float) -> None:
        self.stream = stream
        self.row = row
        self.draft = draft
        self._started = started

    def keep(self) -> None:
        """Note that it is safe, so that its pages are no longer pending."""
        if self.draft:
            self.draft.committed()
            self.row = self.row.written(self._started)
            self.stream.kept()

    def drop(self) -> None:
        """Remove the epoch, and everything of its name."""
        if self.draft:
            self.draft.withdraw()

    def told(self) -> None:
        """Note that the user has its row: its warnings need not be repeated."""
        self.stream.untold = []


def complete(parts: Sequence[Part]) -> None:
    """Make the epochs of several streams safe; only then are their pages no longer pending.

    Raises:
        StorageError: one of them is not safe; none is left, and the next epochs have it all.
    """
    try:
        make_safe([part.draft for part in parts if part.draft])
    except BaseException:
        for part in parts:
            part.drop()
        raise
    for part in parts:
        part.keep()


class Stream:
    """One source's epochs.

    Attributes:
        untold: warnings that no row has given to the user yet.
    """

    def __init__(self, source: Source, sink: Sink, interrupted: Callable[[], bool]) -> None:
        """Args:
        interrupted: called while a base is copied; if it returns True the base is dropped.
        """
        self.source = source
        self.sink = sink
        self.interrupted = interrupted
        self.untold: list[str] = []
        self._based = False
        self._begun: Draft | None = None
        self._left_out = Once(_left_out)

    @property
    def in_base(self) -> bool:
        """Whether a base has begun that the next `draft` makes whole."""
        return self._begun is not None

    def prepare(self) -> None:
        """If a base is due: arm, and copy while the target runs. The window then has to copy only what it
        wrote meanwhile, and `draft` makes the base whole.

        Raises:
            SessionInterrupted, StorageError, TargetBusyError, NewMemoryError, TargetGoneError: as they say;
                the base is dropped.
        """
        if self._based or self._begun:
            return
        self._begun = self.sink.begin()
        try:
            precopy(self.source, self._begun, _is_little, self.interrupted)
        except BaseException:
            self.abandon()
            raise

    def draft(
        self,
        window: Window,
        circumstances: Circumstances = ON_TIME,
        elsewhere: list[Elsewhere] | None = None,
    ) -> Part:
        """Make an epoch of a window of the source's, until only `complete` is missing to make it safe.

        Args:
            elsewhere: see `Epoch`.

        Raises:
            StorageError: we could not write it.
            TargetGoneError, NewMemoryError: the target has ended, or called exec, meanwhile.
        """
        started = time.perf_counter()
        draft, self._begun = self._begun, None
        base = draft is not None
        try:
            notes, facts = self.source.describe(window)
            self.untold = [*self.untold, *facts.warnings]
            draft = draft or self.sink.begin()
            draft.void(window.reset)
            draft.add(window.data, window.zero, window.contents)
            epoch = Epoch(self._row(window, base, circumstances), window, notes, facts, elsewhere)
            return Part(self, draft.finish(epoch), draft, started)
        except BaseException:
            if draft:
                draft.abort()
            raise

    def kept(self) -> None:
        """Note that the last epoch is safe."""
        self.source.acknowledge()
        self._based = True

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
            late=circumstances.late,
            skipped=circumstances.skipped,
            skip_reason=circumstances.skip_reason,
            max_dirty=self.source.max_dirty,
        )


def _is_little(done: Round) -> bool:
    return done.left <= QUIET or (done.number > 0 and done.left > done.sent // 2)


def _left_out(regions: list[Region]) -> tuple[int, int]:
    """How many mappings are left out, and of how many bytes."""
    sizes = [r.size for r in regions if r.left_out]
    return len(sizes), sum(sizes)
