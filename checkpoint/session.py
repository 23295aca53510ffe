"""A session: epochs of one source into one chain."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from checkpoint.epoch import EpochRow, Times, TreeRow
from checkpoint.pipeline import Pipeline
from checkpoint.precopy import SessionInterrupted
from checkpoint.sink import ChainSink, Draft, Images, Sink
from checkpoint.source import Source
from checkpoint.stream import Circumstances, Part, Stream
from uffdtrack import Rhythm, Window
from uffdtrack.errors import MaxStopError, TargetBusyError

REST = 0.05
"""Seconds between two looks at a target, while we can take no epoch of it."""
PATIENCE = 3
"""For so many seconds we try the stop that ends a base again."""
R = TypeVar("R", EpochRow, TreeRow)


class TakenEpoch(ABC, Generic[R]):
    """An epoch that a session has taken; a `Job` of its pipeline.

    Attributes:
        time_ns: when it was taken, on the host's clock.
    """

    size: int
    base: bool
    at_once = False

    def __init__(self, session: Taker[R], circumstances: Circumstances, times: Times) -> None:
        self._session: Taker[R] = session
        self._circumstances = circumstances
        self.times = times
        self.taken = time.perf_counter()
        self.time_ns = time.time_ns()

    @property
    @abstractmethod
    def row(self) -> R:
        """It is whole when the epoch is safe."""

    @abstractmethod
    def write(self) -> Sequence[Draft]: ...

    @abstractmethod
    def commit(self, last: bool) -> None: ...

    @abstractmethod
    def drop(self) -> None: ...

    def take_back(self) -> None:
        self._session.not_given(self._circumstances)


class Taker(ABC, Generic[R]):
    """What sessions of one target and of a tree have in common.

    Attributes:
        pipeline: writes what `put` takes.
        waited_us: how long the next epoch was put off.
        late: intervals that were given up since the next epoch was due.
        skipped: how many epochs we could not take since the last row; `skip_reason` says why, or is "".
        rhythm: when epochs are due.
    """

    def __init__(self) -> None:
        self.pipeline = Pipeline()
        self.waited_us = 0.0
        self.late = 0
        self.skipped = 0
        self.skip_reason = ""
        self.rhythm = Rhythm()

    @property
    def ahead(self) -> int:
        """How many of the next epochs were taken already."""
        return 0

    @abstractmethod
    def begin(self) -> TakenEpoch[R]:
        """Take one epoch, which still has to be written.

        Raises:
            StorageError: an earlier one, or a base, could not be written; the next one has its pages, too.
            StopTimeoutError: a thread did not stop; nothing was taken.
            TargetBusyError: we cannot take it now; nothing is lost, and the next one has it all.
            MaxStopError: the target would have stood for too long; the next epoch is copied while it runs.
            TargetGoneError: the target has ended, or all processes of a tree have.
            SessionInterrupted: a base was under way and has been dropped.
        """

    @abstractmethod
    def settle(self, timeout: float) -> bool:
        """Wait, up to some seconds, for threads that did not stop in time; False: some still have not."""

    def take(self) -> R:
        """Take one epoch, and wait until it is safe. Raises: as `begin`, and StorageError."""
        epoch = self.begin()
        self.pipeline.run(epoch)
        return epoch.row

    def put(self, announce: Callable[[TakenEpoch[R]], None] = lambda epoch: None) -> None:
        """Take one epoch, which is written while the session goes on.

        Args:
            announce: gets it before it is written.

        Raises:
            OutputError: the row of an earlier one could not be told.
            Others: as `begin`; StorageError also of earlier ones.
        """
        self.waited_us += self.pipeline.make_room()
        epoch = self.begin()
        announce(epoch)
        self.pipeline.put(epoch)

    def circumstances(self, waited: bool = True) -> Circumstances:
        """How punctual the epoch is that is taken now. `waited`: its stop was put off by `waited_us`."""
        waited_us = self.waited_us if waited else 0.0
        found = Circumstances(waited_us, self.late, self.skipped, self.skip_reason)
        self.waited_us, self.skipped, self.skip_reason = self.waited_us - waited_us, 0, ""
        return found

    def not_given(self, circumstances: Circumstances) -> None:
        """They were of an epoch that is not stored: the next one has them, too."""
        self.skipped += circumstances.skipped
        self.skip_reason = self.skip_reason or circumstances.skip_reason


class SingleEpoch(TakenEpoch[EpochRow]):
    """An epoch of one target."""

    def __init__(self, session: Session, part: Part, circumstances: Circumstances) -> None:
        super().__init__(session, circumstances, part.row.times)
        self.part = part
        self.taken = part.started
        self.time_ns = part.row.time_ns
        self.size = part.size
        self.base = part.row.base
        self.at_once = part.at_once

    @property
    def row(self) -> EpochRow:
        return self.part.row

    def write(self) -> Sequence[Draft]:
        self.part.write()
        return [self.part.draft] if self.part.draft else []

    def commit(self, last: bool) -> None:
        self.part.keep(last)

    def drop(self) -> None:
        self.part.drop()

    def take_back(self) -> None:
        super().take_back()
        self.part.take_back()


class Session(Taker[EpochRow]):
    """Takes epochs of one target into one directory, the base first."""

    def __init__(
        self,
        target: Source,
        chain: Images,
        interrupted: Callable[[], bool] = lambda: False,
        sink: Sink | None = None,
    ) -> None:
        """Args:
        interrupted: called while a base is copied; if it returns True the base is dropped.
        sink: where the epochs go, if not into the chain.
        """
        super().__init__()
        self.target = target
        self.sink = ChainSink(chain)
        self.stream = Stream(target, sink or self.sink, interrupted)
        self.pipeline.together = self.stream.sink.at_once
        self.pipeline.here = self.stream.sink.quick
        self.stream.sink.arrived = self.pipeline.arrived
        # Where a limit ends the wait for the next epoch, that comes at once.
        self.rhythm.in_series = self.pipeline.together and target.max_dirty is None
        target.rhythm = self.rhythm

    @property
    def ahead(self) -> int:
        return self.target.ahead

    def begin(self) -> SingleEpoch:
        try:
            return self.target.persist(self._attempt, self._begin_anew)
        except BaseException:
            self.stream.abandon()
            raise

    def settle(self, timeout: float) -> bool:
        return self.target.settle(timeout)

    def _attempt(self) -> SingleEpoch:
        if not self.stream.in_base and not self.stream.sink.follows(self.pipeline.drain):
            self.stream.rebase()
        if self.stream.is_due and self.stream.in_flight:
            self.pipeline.drain()
        self.stream.prepare()
        is_taken = self.ahead > 0  # then a wait has put off the next stop, not this one
        window = self._window()
        self.late += window.late
        circumstances = self.circumstances(waited=not is_taken)
        at_once = self.pipeline.together and not self.ahead and self.pipeline.is_idle
        try:
            return SingleEpoch(self, self.stream.part(window, circumstances, at_once), circumstances)
        except BaseException:
            self.not_given(circumstances)
            raise

    def _begin_anew(self) -> None:
        self.stream.rebase()
        if self.stream.interrupted():
            raise SessionInterrupted

    def _window(self) -> Window:
        """Take the window that ends a base, and try again: one late stop must not cost the base."""
        self.target.behind = self.rhythm.behind
        if self.stream.in_base:
            self.rhythm.most = 1
        deadline = time.monotonic() + (PATIENCE if self.stream.in_base else 0)
        while True:
            try:
                return self.target.window()
            except MaxStopError:
                self.stream.rebase()
                raise
            except TargetBusyError:
                if not self.stream.in_base or time.monotonic() > deadline:
                    raise
            if self.stream.interrupted():
                raise SessionInterrupted
            if self.target.settle(REST):
                time.sleep(REST)
