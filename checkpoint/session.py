"""A session: epochs of one source into one chain."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from checkpoint.chain_writer import ChainWriter
from checkpoint.epoch import EpochRow, TreeRow
from checkpoint.precopy import SessionInterrupted
from checkpoint.sink import ChainSink
from checkpoint.source import Source
from checkpoint.stream import Circumstances, Part, Stream, complete
from uffdtrack import Window
from uffdtrack.errors import MaxStopError, TargetBusyError

REST = 0.05
"""Seconds between two looks at a target of which no epoch can be taken."""
PATIENCE = 3
"""Seconds in which the stop that ends a base is tried again."""
R = TypeVar("R", EpochRow, TreeRow)


class Taker(ABC, Generic[R]):
    """What sessions of one target and of a tree have in common.

    Attributes:
        late: intervals that have passed since the next epoch was due.
        skipped: epochs that could not be taken since the last row; `skip_reason` says why, or is "".
    """

    def __init__(self) -> None:
        self.late = 0
        self.skipped = 0
        self.skip_reason = ""

    @abstractmethod
    def take(self) -> R:
        """Take one epoch and return its row.

        Raises:
            StorageError: it could not be written; its pages come with the next one.
            StopTimeoutError: a thread did not stop; nothing was taken.
            TargetBusyError: it cannot be taken now; nothing is lost, and the next one has it all.
            MaxStopError: the target would have stood for too long; what is due is copied while it runs.
            TargetGoneError: the target has ended, or all processes of a tree have.
            SessionInterrupted: a base was under way and has been dropped.
        """

    @abstractmethod
    def settle(self, timeout: float) -> bool:
        """Wait, up to some seconds, for what did not stop in time; False: some still did not."""

    def circumstances(self) -> Circumstances:
        return Circumstances(self.late, self.skipped, self.skip_reason)

    def given(self, parts: Iterable[Part]) -> None:
        """The row of an epoch is complete: what it says need not be said again."""
        self.skipped, self.skip_reason = 0, ""
        for part in parts:
            part.told()


class Session(Taker[EpochRow]):
    """Takes epochs of one target into one directory, the base first."""

    def __init__(
        self, target: Source, chain: ChainWriter, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        """Args:
        interrupted: asked while a base is copied; where it says so the base is dropped.
        """
        super().__init__()
        self.target = target
        self.stream = Stream(target, ChainSink(chain), interrupted)

    def take(self) -> EpochRow:
        try:
            return self.target.persist(self._attempt, self._begin_anew)
        except BaseException:
            self.stream.abandon()
            raise

    def settle(self, timeout: float) -> bool:
        return self.target.settle(timeout)

    def _attempt(self) -> EpochRow:
        self.stream.prepare()
        part = self.stream.draft(self._window(), self.circumstances())
        complete([part])
        self.given([part])
        return part.row

    def _begin_anew(self) -> None:
        self.stream.rebase()
        if self.stream.interrupted():
            raise SessionInterrupted

    def _window(self) -> Window:
        """The stop that ends a base is tried again: a base is not thrown away for one that is late."""
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
