"""The cycle of a tracker whose lists are in a C core: which call is due, and pages without a copy."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import numpy.typing as npt

from uffdtrack.errors import CycleError, InvalidInputError, TrackerError
from uffdtrack.pages import DirtyLog, DirtyPages, smaller_log
from uffdtrack.space import PAGE

Logs = list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]]


def log_array(arena: Any, base: int, at: int, dtype: Any, pages: int) -> Any:
    """A list of a C core's as an array over the arena, which begins at address `base`."""
    return np.frombuffer(arena, dtype, pages, at - base)


class Cycles:
    """prepare, fetch, rearm, exchange; a mechanism says how in the `_c_` methods, which may return -errno.

    Attributes:
        ram: what is tracked.
    """

    ram: Any

    def __init__(self) -> None:
        self._cycle = 0
        self._logs: Logs = []

    def _active(self) -> Any:
        """The core's tracker; raises CycleError where there is none."""
        raise NotImplementedError

    def _check(self, result: int, doing: str) -> int:
        if result == -errno.EBUSY:
            raise CycleError(
                f"cannot {doing}: pages of the last cycle are not rearmed yet: fetch() and rearm()"
            )
        if result < 0:
            raise TrackerError(f"cannot {doing}: errno {-result}")
        return result

    def _c_prepare(self) -> int:
        raise NotImplementedError

    def _c_fetch(self, most: int) -> tuple[int, int]:
        """The place of the first page in the ended cycle's list, and how many."""
        raise NotImplementedError

    def _c_rearm(self, gfn: int, n: int) -> int:
        """`gfn`: the address of the first frame number."""
        raise NotImplementedError

    def _c_exchange(self) -> int:
        raise NotImplementedError

    def _c_ended(self) -> int:
        """Which of the two logs is the ended cycle's."""
        raise NotImplementedError

    def _c_length(self) -> int:
        """Of the ended cycle's log."""
        raise NotImplementedError

    def prepare(self) -> int:
        """End the cycle, and begin the next one: counters are zero again.

        Returns:
            How many pages there are to `fetch()`.

        Raises:
            CycleError: pages of the last cycle are not fetched and rearmed yet.
            HandlerGoneError: what was written is not known.
        """
        n = self._check(self._c_prepare(), "end the cycle")
        self._cycle += 1
        return n

    def fetch(self, max_pages: int | None = None) -> DirtyPages:
        """Pages of the ended cycle that nobody has fetched yet, none when there are no more.

        Threads may call it at once: each gets a part of its own.

        Raises:
            CycleError: before the first `prepare()`.
        """
        self._active()
        if not self._cycle:
            raise CycleError("no cycle has ended yet: prepare() comes first")
        if max_pages is not None and max_pages <= 0:
            raise InvalidInputError(f"cannot fetch {max_pages} pages")
        first, n = self._c_fetch(self.ram.size if max_pages is None else max_pages)
        gfn, vcpu = self._logs[self._c_ended()]
        return DirtyPages(gfn[first : first + n], vcpu[first : first + n], self._cycle)

    def rearm(self, pages: DirtyPages) -> None:
        """Set the traps of fetched pages again. Read their contents after it.

        Raises:
            CycleError: pages of another cycle, or rearmed already.
        """
        self._active()
        if not isinstance(pages, DirtyPages):
            raise InvalidInputError(f"pages are what fetch() gave, not {type(pages).__name__}")
        if pages.cycle != self._cycle:
            raise CycleError(f"these are pages of cycle {pages.cycle}, and the last one is {self._cycle}")
        if pages.rearmed:
            raise CycleError("these pages are rearmed already")
        pages.rearmed = True  # first, so that of two threads one is told
        try:
            if len(pages):
                self._check(self._c_rearm(pages.gfn.ctypes.data, len(pages)), "rearm")
        except BaseException:
            pages.rearmed = False
            raise

    def exchange(self) -> DirtyPages:
        """`prepare()`, `fetch()` of all, and `rearm()` of it, at the lowest cost.

        Raises:
            CycleError: pages of the last cycle are not fetched and rearmed yet.
            HandlerGoneError: what was written is not known.
        """
        n = self._c_exchange()
        if n < 0:
            if n != -errno.EBUSY:
                self._cycle += 1  # what is not rearmed can be fetched
            self._check(n, "end the cycle")
        self._cycle += 1
        gfn, vcpu = self._logs[self._c_ended()]
        pages = DirtyPages(gfn[:n], vcpu[:n], self._cycle)
        pages.rearmed = True
        return pages

    def get_dirty_log(self) -> DirtyLog:
        """The ended cycle's pages as a list or as a bitmap, whichever is smaller (docs/engines.md)."""
        self._active()
        if not self._cycle:
            raise CycleError("no cycle has ended yet: prepare() comes first")
        gfn = self._logs[self._c_ended()][0][: self._c_length()]
        return smaller_log(gfn, self.ram.index(gfn), self.ram.size // PAGE)
