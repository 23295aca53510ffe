"""The end of a process of this host, seen by an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class ProcessWatch:
    """Watches one process at a time. In the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
        """Args: ended: called once for each process that ends while it is watched."""
        self._loop = loop
        self._ended = ended
        self._pidfd = -1

    def watch(self, pidfd: int | None) -> None:
        """Watch the process of a pidfd, of which a copy is made, and no other one. None: watch none."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if pidfd is not None:
            self._pidfd = os.dup(pidfd)
            self._loop.add_reader(self._pidfd, self._note)

    def _note(self) -> None:
        self.watch(None)
        self._ended()
