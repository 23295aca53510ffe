"""The event loop of a link's thread. Whoever calls the system gives the interpreter's lock away."""

from __future__ import annotations

import asyncio
import time
from selectors import DefaultSelector, SelectorKey

LONGEST = 0.001
"""Seconds: for so long sockets are not looked at, if there is something to do already."""


class RareSelector(DefaultSelector):
    """Looks at the sockets when there is nothing else to do, or when that was put off for too long.

    A loop looks between any two callbacks of a task; each time the session's thread takes the lock, and the
    loop waits until it gets it back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._looked = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout == 0 and time.monotonic() < self._looked + LONGEST:
            return []
        found = super().select(timeout)
        self._looked = time.monotonic()
        return found


def new_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(RareSelector())
