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
"""Seconds between two looks at a target, while we can take no epoch of it."""
PATIENCE = 3
"""For so many seconds we try the stop that ends a base again."""
R = TypeVar("R", EpochRow, TreeRow)


class Taker(ABC, Generic[R]):
    """What sessions of one target and of a tree have in common.

    Attributes:
        late: intervals that have passed since the next epoch was due.
        skipped: how many epochs we could not take since the last row; `skip_reason` says why, or is "".
    """

    def __init__(self) -> None:
        self.late = 0
        self.skipped = 0
        self.skip_reason = ""

    @abstractmethod
    def take(self) -> R:
        """Take one epoch and return its row.

        Raises:
            StorageError: we could not write it; the next one has its pages, too.
            StopTimeoutError: a thread did not stop; nothing was taken.
            TargetBusyError: we cannot take it now; nothing is lost, and the next one has it all.
            MaxStopError: the target would have stood for too long; the next epoch is copied while it runs.
            TargetGoneError: the target has ended, or all processes of a tree have.
            SessionInterrupted: a base was under way and has been dropped.
        """

    @abstractmethod
    def settle(self, timeout: float) -> bool:
        """Wait, up to some seconds, for threads that did not stop in time; False: some still have not."""

    def circumstances(self) -> Circumstances:
        return Circumstances(self.late, self.skipped, self.skip_reason)

    def given(self, parts: Iterable[Part]) -> None:
        """Note that the user has an epoch's row: its warnings need not be repeated."""
        self.skipped, self.skip_reason = 0, ""
        for part in parts:
            part.told()


class Session(Taker[EpochRow]):
    """Takes epochs of one target into one directory, the base first."""

    def __init__(
        self, target: Source, chain: ChainWriter, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        """Args:
        interrupted: called while a base is copied; if it returns True the base is dropped.
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
        """Take the window that ends a base, and try again: one late stop must not cost the base."""
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
