"""A tracker whose lists are in a C core: its life, its cycle, which call is due, pages without a copy."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from uffdtrack.closing import Closing
from uffdtrack.errors import CycleError, InvalidInputError
from uffdtrack.gate import Gated
from uffdtrack.pages import DirtyLog, DirtyPages, smaller_log
from uffdtrack.ram import NORESERVE
from uffdtrack.runs import PAGE
from uffdtrack.traits import Traits

Contents = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Core:
    """The functions of a C core that every tracker has, whatever their prefix there; `ffi`: its module's."""

    ffi: Any
    free: Callable[[Any], Any]
    prepare: Callable[[Any], int]
    fetch: Callable[[Any, int, Any], int]
    fetch_again: Callable[[Any], None]
    rearm: Callable[[Any, Any, int], int]
    exchange: Callable[[Any], int]
    pending: Callable[[Any], int]


@dataclass(frozen=True, slots=True)
class Cycle:
    """The two logs of an active tracker, without a copy.

    Attributes:
        native: the core's tracker; `state` is a part of it, and lives as long.
        logs: gfn and vCPU of each page, by the number of the log.
    """

    native: Any
    state: Any
    logs: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]]

    def pages(self, first: int, n: int) -> DirtyPages:
        """Pages of the ended cycle. It stays the ended one while a page of it is claimed and not rearmed."""
        gfn, vcpu = self.logs[1 - self.state.open]
        return DirtyPages(gfn[first : first + n], vcpu[first : first + n], self.state.number)


def _free(free: Callable[[Any], Any], _arena: Any, native: Any) -> None:
    free(native)


def rows_of(into: Contents) -> Contents:
    """Raises: InvalidInputError: it is no array that contents of pages can be copied to."""
    if (
        not isinstance(into, np.ndarray)
        or into.dtype != np.uint8
        or into.ndim != 2
        or into.shape[1] != PAGE
        or not into.flags.c_contiguous
        or not into.flags.writeable
    ):
        raise InvalidInputError(f"contents go to a contiguous, writable array of uint8 of shape (n, {PAGE})")
    return into


def check_call(result: int, doing: str) -> int:
    """Raise what an -errno means in every core: a call that is not due. Return others as they are."""
    if result == -errno.ESHUTDOWN:
        raise CycleError(f"cannot {doing}: the tracker was deactivated meanwhile")
    if result == -errno.EBUSY:
        raise CycleError(f"cannot {doing}: pages of the last cycle are not rearmed yet: fetch() and rearm()")
    return result


class CycleTracker(Gated, Closing):
    """A tracker whose lists are in a C core.

    A mechanism sets `core` and `gate`, and defines how it begins and ends.

    Attributes:
        ram: what it tracks.
        traits: what the mechanism promises.
        vcpus: how many there can be.
    """

    core: Core
    ram: Any

    def __init__(self, ram: Any, traits: Traits, vcpus: int, max_dirty_pages: int | None) -> None:
        self.ram = ram
        self.traits = traits
        self.vcpus = vcpus
        super().__init__(max_dirty_pages)
        self._cycle: Cycle | None = None  # while it is active
        self._closed = False

    # -- what a mechanism says of itself -----------------------------------------------------------

    def _begin(self) -> None:
        """Allocate every buffer, set every trap, and `_open()` the core's tracker."""
        raise NotImplementedError

    def _end(self, native: Any) -> None:
        """Release all of it. Idempotent.

        Args:
            native: the core's tracker, or None if there is none, or not yet.
        """
        raise NotImplementedError

    def _check(self, result: int, doing: str) -> int:
        """Turn a negative errno of the core into an exception."""
        raise NotImplementedError

    # -- init, activate, deactivate, cleanup ------------------------------------------------------

    def activate(self) -> None:
        """Allocate every buffer, and set every trap.

        Raises:
            CycleError: it is active already, or closed, or another tracker prevents it.
        """
        if self._closed:
            raise CycleError("the tracker is closed: open another one")
        if self._c is not None:
            raise CycleError("the tracker is active already")
        try:
            self._begin()
        except BaseException:
            self.deactivate()
            raise
        self.ram.add_tracker(self)

    def _open(self, size: int, make: Callable[[Any], Any]) -> None:
        """Open the core's tracker, with its lists in an arena of `size` bytes.

        Args:
            make: gets the arena's memory, and makes the tracker.
        """
        # Python's, so that pages which somebody still has outlive the tracker.
        arena = mmap.mmap(-1, size, NORESERVE)
        ffi = self.core.ffi
        memory = ffi.from_buffer(arena)
        # Freed with the last reference, and the arena not before it: another thread may be in a call when the
        # tracker is closed.
        native = ffi.gc(make(memory), partial(_free, self.core.free, memory))
        base, pages = int(ffi.cast("uintptr_t", memory)), self.ram.size // PAGE

        def array(at: Any, dtype: Any) -> Any:
            return np.frombuffer(arena, dtype, pages, int(ffi.cast("uintptr_t", at)) - base)

        logs = [(array(log.gfn, np.uint64), array(log.vcpu, np.int32)) for log in native.cycle.log]
        self._cycle = Cycle(native, native.cycle, logs)

    def deactivate(self) -> None:
        """Make every page writable, and let every vCPU run. Idempotent."""
        native, self._cycle = self._c, None
        self.ram.drop_tracker(self)
        self._end(native)

    def close(self) -> None:
        """`deactivate()`, for good. Idempotent."""
        self.deactivate()
        self._closed = True

    def __enter__(self) -> Self:
        self.activate()
        return self

    @property
    def _c(self) -> Any:
        """The core's tracker, or None if it is not active."""
        cycle = self._cycle
        return cycle and cycle.native

    def _active(self) -> Any:
        return self._active_cycle().native

    # -- a cycle ----------------------------------------------------------------------------------

    def _active_cycle(self) -> Cycle:
        cycle = self._cycle
        if cycle is None:
            raise CycleError("the tracker is not active: activate() comes first")
        return cycle

    def _ended_cycle(self) -> Cycle:
        cycle = self._active_cycle()
        if not cycle.state.number:
            raise CycleError("no cycle has ended yet: prepare() comes first")
        return cycle

    def prepare(self) -> int:
        """End the cycle, and begin the next one: counters are zero again.

        Returns:
            How many pages there are to `fetch()`.

        Raises:
            CycleError: pages of the last cycle are not fetched and rearmed yet.
            HandlerGoneError: what was written is not known.
        """
        return self._check(self.core.prepare(self._active()), "end the cycle")

    def fetch(self, max_pages: int | None = None) -> DirtyPages:
        """Pages of the ended cycle that nobody has fetched yet, none when there are no more.

        Threads may call it at once: each gets a part of its own.

        Raises:
            CycleError: before the first `prepare()`.
        """
        cycle = self._ended_cycle()
        if max_pages is not None and max_pages <= 0:
            raise InvalidInputError(f"cannot fetch {max_pages} pages")
        out = self.core.ffi.new("uint64_t *")
        n = self.core.fetch(cycle.native, self.ram.size if max_pages is None else max_pages, out)
        return cycle.pages(out[0], self._check(n, "fetch"))

    def rearm(self, pages: DirtyPages) -> None:
        """Set the traps of fetched pages again. Read their contents after it.

        Raises:
            CycleError: pages of another cycle, or rearmed already.
        """
        cycle = self._active_cycle()
        if not isinstance(pages, DirtyPages):
            raise InvalidInputError(f"pages are what fetch() gave, not {type(pages).__name__}")
        if pages.cycle != (last := cycle.state.number):
            raise CycleError(f"these are pages of cycle {pages.cycle}, and the last one is {last}")
        if pages.rearmed:
            raise CycleError("these pages are rearmed already")
        pages.rearmed = True  # first, so that of two threads one is told
        try:
            if len(pages):
                gfn = self.core.ffi.cast("uint64_t *", pages.gfn.ctypes.data)
                self._check(self.core.rearm(cycle.native, gfn, len(pages)), "rearm")
        except BaseException:
            pages.rearmed = False
            raise

    def exchange(self, into: Contents | None = None) -> DirtyPages:
        """`prepare()`, `fetch()` of all, and `rearm()` of it, at the lowest cost. One thread ends cycles.

        Args:
            into: shape (n, 4096), uint8, contiguous: row i gets the contents of page i of the result. A page
                that was dirty in the last cycle too may then stay writable (hot): the next call compares it
                with what this one has copied, and lists it if it differs. If the cycle has more pages than
                n, the others are left to `fetch()` and `rearm()`. For contents of one instant, the vCPUs
                have to stand.

        Raises:
            CycleError: pages of the last cycle are not fetched and rearmed yet.
            HandlerGoneError: what was written is not known.
        """
        cycle = self._active_cycle()
        if into is None:
            n = self.core.exchange(cycle.native)
            pages = cycle.pages(0, n if n >= 0 else self._check(n, "end the cycle"))
        else:
            pages = self._exchange_into(cycle, into)
        pages.rearmed = True
        return pages

    def _exchange_into(self, cycle: Cycle, into: Contents) -> DirtyPages:
        """`exchange()` with contents: the pages that it has copied."""
        rows = rows_of(into)
        self._check(self.core.prepare(cycle.native), "end the cycle")
        pages = self.fetch(len(rows)) if len(rows) else cycle.pages(0, 0)
        try:
            self.rearm(pages)
        except BaseException:
            self.core.fetch_again(cycle.native)
            raise
        self.ram.read_into(pages.gfn, rows)
        return pages

    def get_dirty_log(self) -> DirtyLog:
        """The ended cycle's pages as a list or as a bitmap, whichever is smaller (docs/engines.md)."""
        cycle = self._ended_cycle()
        ended = 1 - cycle.state.open
        gfn = cycle.logs[ended][0][: int(cycle.state.log[ended].n)]
        return smaller_log(gfn, self.ram.index(gfn), self.ram.size // PAGE)

    def pending(self) -> int:
        """Pages of the open cycle so far; of kvm-clear, once the last cycle is rearmed."""
        return self._check(self.core.pending(self._active()), "count")
