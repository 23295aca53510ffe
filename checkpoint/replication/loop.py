"""The event loop of a link's thread. Whoever calls the system gives the interpreter's lock away."""

from __future__ import annotations

import asyncio
from selectors import DefaultSelector, SelectorKey

MOST = 8
"""So many times in a row sockets are not looked at, since there is something to do already."""


class RareSelector(DefaultSelector):
    """Looks at the sockets when there is nothing else to do, or when that was put off for too long.

    A loop looks between any two callbacks of a task; each time the session's thread takes the lock, and the
    loop waits until it gets it back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._put_off = 0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout == 0 and self._put_off < MOST:
            self._put_off += 1
            return []
        self._put_off = 0
        return super().select(timeout)


def new_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(RareSelector())
