"""The pause gate and the threshold of a tracker."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from uffdtrack._sys import check_own, lib
from uffdtrack.errors import (
    CycleError,
    HandlerGoneError,
    InvalidInputError,
    PauseTimeoutError,
    VcpuGoneError,
)

PAUSE_TIMEOUT = 1.0
"""Seconds in which every vCPU has to stop."""


def checked_threshold(pages: int) -> int:
    if pages <= 0:
        raise InvalidInputError(f"a threshold of {pages} pages")
    return pages


class Gate:
    """What stops and resumes the vCPUs of `UffdTracker`, which is this with cycles and lists.

    One thread controls the vCPUs: `pause()`, `wait_full()` and `resume()` of several threads would get into
    each other's way.
    """

    def __init__(self, vcpus: int, threshold: int) -> None:
        self.vcpus = vcpus
        self._threshold = threshold
        self._c: Any = None
        self._shared: Any = None
        self._joined = threading.Condition()
        self._gone: list[int] = []

    def _bury(self, vcpu: int) -> None:
        raise NotImplementedError

    def _active(self) -> Any:
        if self._c is None:
            raise CycleError("the tracker is not active: activate() comes first")
        return self._c

    def _check(self, result: int, doing: str) -> int:
        if result >= 0:
            return result
        if result == -errno.ESHUTDOWN:
            raise CycleError(f"cannot {doing}: the tracker was deactivated meanwhile")
        if result == -errno.EBUSY:
            raise CycleError(
                f"cannot {doing}: pages of the last cycle are not rearmed yet: fetch() and rearm()"
            )
        if result == -errno.EPIPE:
            raise HandlerGoneError(
                f"cannot {doing}: a fault handler has ended, and what was written since is not known; "
                "deactivate(), and take a full copy"
            )
        return check_own(result, doing)

    @property
    def max_dirty_pages(self) -> int | None:
        """The threshold of the whole guest, or None. It can be set anew, best while the vCPUs stand."""
        return self._threshold or None

    @max_dirty_pages.setter
    def max_dirty_pages(self, pages: int) -> None:
        if not self._threshold:
            raise CycleError("no threshold was given to open_tracker(), so there is none to change")
        self._threshold = checked_threshold(pages)
        native = self._c
        if native is not None:
            self._check(lib.ut_set_threshold(native, self._threshold), "set the threshold")

    def wait_full(self, timeout: float | None = None) -> bool:
        """Wait until the threshold is reached; every vCPU stands then, until `resume()`.

        Args:
            timeout: in seconds; None: for ever.

        Returns:
            Whether it was reached.

        Raises:
            CycleError: there is no threshold.
            PauseTimeoutError: a vCPU did not stop in time; all run on.
            VcpuGoneError: a vCPU has ended.
        """
        native = self._active()
        if not self._threshold:
            raise CycleError("no threshold was given to open_tracker()")
        left = float("inf") if timeout is None else timeout
        while True:
            # In slices, so that Ctrl-C is heard.
            part = min(left, 0.1)
            result = lib.ut_wait_full(native, int(part * 1e9), int(PAUSE_TIMEOUT * 1e9))
            if result == 1:
                return True
            self._check_pause(result)
            left -= part
            if left <= 0:
                return False

    def pause(self, timeout: float = PAUSE_TIMEOUT) -> None:
        """Stop every vCPU.

        A vCPU that is a Python thread of this process is not stopped: it may hold the interpreter's lock,
        and who would wake it then?

        Raises:
            PauseTimeoutError: one did not stop within `timeout` seconds; all run on.
            VcpuGoneError: a vCPU has ended.
        """
        self._check_pause(lib.ut_pause(self._active(), int(timeout * 1e9)))

    def _check_pause(self, result: int) -> None:
        shared = self._shared
        if result == -errno.ESHUTDOWN or shared is None:
            self._check(-errno.ESHUTDOWN, "stop the vCPUs")
        if result == -errno.ETIMEDOUT:
            late = tuple(
                i
                for i in range(self.vcpus)
                if lib.ut_vcpu_state(shared, i) == lib.UT_VCPU_BOUND and not lib.ut_vcpu_stands(shared, i)
            )
            self._let_run()
            raise PauseTimeoutError(f"vCPUs {list(late)} did not stop in time; all run on", late)
        if result < 0:
            self._let_run()
        if result == -errno.ESRCH:
            gone = [i for i in range(self.vcpus) if lib.ut_vcpu_state(shared, i) == lib.UT_VCPU_GONE]
            for vcpu in gone:
                self._bury(vcpu)
        self._tell_gone()
        if result != -errno.ESRCH:
            self._check(result, "stop the vCPUs")

    def _let_run(self) -> None:
        if self._c is not None:
            lib.ut_let_run(self._c)

    def _tell_gone(self) -> None:
        with self._joined:
            gone, self._gone = tuple(sorted(set(self._gone))), []
        if gone:
            self._let_run()
            raise VcpuGoneError(
                f"vCPUs {list(gone)} have ended; what they wrote is in the next cycle, and others run on",
                gone,
            )

    def resume(self) -> None:
        """Let every vCPU run. Idempotent.

        Raises:
            CycleError: the lists are full: `exchange()` or `prepare()` comes first.
        """
        result = lib.ut_resume(self._active())
        if result != -errno.EBUSY:
            self._check(result, "resume")
        else:
            raise CycleError("the lists are full: exchange() or prepare() comes before resume()")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """All vCPUs stand in the block, and run after it. A pause that `wait_full()` began is taken over."""
        self.pause()  # a closed gate is no pause yet: a vCPU may just have closed it
        try:
            yield
        finally:
            self.resume()
