"""Windows that follow each other closely: one call of the core takes several."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from uffdtrack._sys import STOP_TIMEOUT_NS, ffi, lib
from uffdtrack.buffers import Buffers
from uffdtrack.maps import Region
from uffdtrack.results import window_of
from uffdtrack.space import AddressSpace
from uffdtrack.tracee import Tracee, states_of
from uffdtrack.window import Pending, Window

PATIENCE = 0.01
"""In a series windows may be late by so many seconds and catch up; beyond, what was due is given up."""


@dataclass(slots=True)
class Rhythm:
    """When windows are due.

    Attributes:
        in_series: several may be taken before anybody sees the first.
        every: seconds from one to the next.
        due: when the last one was, in time.monotonic().
        behind: the next one is late by an interval or more.
        most: so many may be taken now.
    """

    in_series: bool = False
    every: float = 1.0
    due: float = 0.0
    behind: bool = False
    most: int = 1

    def come_due(self, due: float, every: float, most: int) -> int:
        """The next window is taken now, and was due then; up to `most` may be taken with it.

        Returns:
            How many intervals were given up: none of them has a window.
        """
        now = time.monotonic()
        self.due, self.every, self.behind = due, every, now - due >= every
        self.most = most if self.in_series else 1
        if not self.behind or (self.in_series and now - due <= PATIENCE):
            return 0
        self.due = now
        return int((now - due) / every)


class Series:
    """Windows of an address space, some of which were taken ahead.

    A series lasts for some milliseconds at most. A window that fails ends it, and is taken by the next one.
    """

    def __init__(self, space: AddressSpace, tracee: Tracee) -> None:
        self._space = space
        self._tracee = tracee
        self._c = ffi.gc(ffi.new("ut_series *"), lib.ut_series_free)
        self._ahead: deque[tuple[Window, Pending]] = deque()
        self._given = 0
        self._buffers = Buffers()

    @property
    def ahead(self) -> int:
        """How many windows were taken, and not given to anybody."""
        return len(self._ahead)

    @property
    def has_failed(self) -> bool:
        """Whether `fail` has something to raise."""
        return bool(self._c.failed) and not self._ahead

    @property
    def is_last(self) -> bool:
        """Whether none was taken, or tried, after the one that `next` has given last."""
        return not self._ahead and not self._c.failed

    def fill(self, pending: Pending, rhythm: Rhythm, wake: Iterable[int], behind: bool) -> None:
        """Take some, the first at once, the others when they are due. None is ahead.

        Args:
            pending: empty.
            rhythm: its `due` is changed.
            wake: up to 8 descriptors that are readable when there is something else to do.
            behind: as in `AddressSpace.window`.

        Raises:
            TargetGoneError, StopTimeoutError, NewMemoryError, TargetBusyError: as `AddressSpace.window`, of
                the first.
        """
        c, space = self._c, self._space
        space.prepare(behind)
        fds = list(wake)
        c.fds[0 : len(fds)], c.nfds = fds, len(fds)
        c.patience_ns = int(PATIENCE * 1e9)
        c.every_ns, c.due_ns = max(1, int(rhythm.every * 1e9)), int(rhythm.due * 1e9)
        lib.ut_series_take(self._tracee.native, space.native, c, rhythm.most, STOP_TIMEOUT_NS)
        self._given = 0
        if not c.n:
            failed, c.failed = c.failed, 0
            space.check(self._tracee, pending, failed, ffi.addressof(c.v[0], "times"))
        rhythm.due = c.due_ns / 1e9
        if c.failed:
            self._tracee.settle(0)
            space.passed_over()  # whoever traces the target now may have gone before the next window
        pending.everything = True  # until it is known what was taken
        # What has failed may have left anything in the place of the last one's.
        regions = space.regions(before=bool(c.anew or c.failed))
        self._ahead.extend(self._window(c.v[i], regions) for i in range(c.n - c.anew))
        if c.anew:
            self._ahead.append(self._window(c.v[c.n - 1], space.regions()))
        if not c.failed:
            window, taken = self._ahead[-1]
            window.heads = taken.heads = space.take_heads()
        pending.everything = False

    def next(self, pending: Pending) -> Window:
        """One that was taken; what it has is in `pending` from then on."""
        window, taken = self._ahead.popleft()
        self._given += 1
        pending.merge(taken)
        return window

    def lend(self) -> Callable[[], None]:
        """As `AddressSpace.lend`, of the window that `next` has given last."""
        taken = self._c.v[self._given - 1]
        if taken.result.contents == taken.buffer.v:
            return self._buffers.lend(taken, "buffer", taken.result.bytes)
        return self._space.lend(taken.result)

    def give_up(self, pending: Pending) -> None:
        """Nobody wants those that were taken: what they have is in `pending` from then on."""
        while self._ahead:
            self.next(pending)

    def fail(self, pending: Pending) -> None:
        """If a window has failed that would have followed the last one: have in `pending` what it got at.

        Raises:
            TargetGoneError, ...: as `AddressSpace.window`, once.
        """
        if self._c.failed and not self._ahead:
            failed, self._c.failed = self._c.failed, 0
            self._space.check(self._tracee, pending, failed, ffi.addressof(self._c.v[self._c.n], "times"))

    def _window(self, taken: Any, regions: list[Region]) -> tuple[Window, Pending]:
        threads = states_of(taken.threads, taken.nthreads, taken.xstate, self._tracee.xstate_stride)
        window, every = window_of(
            taken.result, taken.times, regions, threads, taken.compared, not taken.by_news,
            ran=taken.ran_ns / 1e9, time_ns=taken.time_ns, late=taken.late,
        )  # fmt: skip
        return window, Pending(every, window.reset)
