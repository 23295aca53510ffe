"""The pause gate of a tracker, and the threshold that closes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from uffdtrack.arguments import whole
from uffdtrack.errors import CycleError, InvalidInputError

PAUSE_TIMEOUT = 1.0
"""Every vCPU has to stop within so many seconds."""
SLICE = 0.1
"""A wait returns to Python after so many seconds, so that Ctrl-C works."""


class Gate(Protocol):
    """Stops and resumes the vCPUs of a tracker.

    One thread controls them: pauses of several threads would interfere.
    """

    def pause(self, timeout: float) -> None:
        """Stop every vCPU, within so many seconds."""

    def resume(self) -> None:
        """Let every vCPU run, unless the lists are full."""

    def wait(self, seconds: float) -> bool:
        """Whether the threshold is reached within so many seconds; then every vCPU stands."""


def checked_threshold(pages: int) -> int:
    whole("max_dirty_pages", pages, -(1 << 63))
    if pages <= 0:
        raise InvalidInputError(f"a threshold of {pages} pages")
    return pages


class Pausable:
    """Has `pause()` and `resume()`."""

    def pause(self) -> None:
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError

    @contextmanager
    def paused(self) -> Iterator[None]:
        """All vCPUs stand in the block, and run after it. It takes over a pause that `wait_full()` began."""
        self.pause()  # a closed gate is no pause yet: a vCPU may just have closed it
        try:
            yield
        finally:
            self.resume()


class Gated(Pausable):
    """A tracker's vCPUs can be stopped: when the user asks for it, and at the threshold.

    Attributes:
        gate: where the vCPUs stand.
    """

    gate: Gate

    def __init__(self, max_dirty_pages: int | None) -> None:
        self._threshold = 0 if max_dirty_pages is None else checked_threshold(max_dirty_pages)

    def _active(self) -> Any:
        """Raises: CycleError: the tracker is not active."""
        raise NotImplementedError

    def _set_threshold(self, pages: int) -> None:
        raise NotImplementedError

    @property
    def max_dirty_pages(self) -> int | None:
        """The threshold of the whole guest, or None. You can set it anew, best while the vCPUs stand."""
        return self._threshold or None

    @max_dirty_pages.setter
    def max_dirty_pages(self, pages: int) -> None:
        if not self._threshold:
            raise CycleError("no threshold was given to open_tracker(), so there is none to change")
        self._set_threshold(checked_threshold(pages))

    def wait_full(self, timeout: float | None = None) -> bool:
        """Wait until the threshold is reached; every vCPU stands then, until `resume()`.

        Args:
            timeout: in seconds; None: for ever.

        Returns:
            Whether it was reached.

        Raises:
            CycleError: there is no threshold.
            PauseTimeoutError: a vCPU did not stop in time; all run on.
            VcpuGoneError, GuestError: a vCPU has ended.
            TargetGoneError: the process whose threads they are has.
        """
        self._active()
        if not self._threshold:
            raise CycleError("no threshold was given to open_tracker()")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = SLICE if deadline is None else max(deadline - time.monotonic(), 0)
            if self.gate.wait(min(left, SLICE)):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def pause(self, timeout: float = PAUSE_TIMEOUT) -> None:
        """Stop every vCPU.

        A vCPU that is a Python thread of this process is not stopped: it may hold the interpreter's lock,
        and then no thread could wake it.

        Raises:
            PauseTimeoutError: one did not stop within `timeout` seconds; all run on.
            VcpuGoneError: a vCPU has ended.
            TargetGoneError: the process whose threads they are has.
        """
        self._active()
        self.gate.pause(timeout)

    def resume(self) -> None:
        """Let every vCPU run. Idempotent.

        Raises:
            CycleError: the lists are full: `exchange()` or `prepare()` comes first.
        """
        self._active()
        self.gate.resume()
