"""Reads the records of a stream, in their order, as they are stored."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from checkpoint.errors import LinkError
from checkpoint.replication.broker.lease import Watcher, clock
from checkpoint.replication.broker.nats_connection import NotNowError
from checkpoint.replication.broker.stream import Entry, Stream

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_KEPT = 16
"""Records that wait here; what comes while they do is fetched later."""
_AGAIN_SECONDS = 0.05
_QUIET_SECONDS = 0.5
"""If nothing has come for so long, the broker is asked: records that it sends on may be missed."""


class Records:
    """The records of a stream.

    Attributes:
        position: number of the last one that was given.
    """

    def __init__(self, stream: Stream, watcher: Watcher) -> None:
        """Begin behind what is there now.

        Args:
            watcher: sees each record as it comes, even if nobody asks for the next one.
        """
        self.position = 0
        self._stream = stream
        self._watcher = watcher
        self._came: deque[Entry] = deque()
        self._event = asyncio.Event()
        self._end: Callable[[], Awaitable[None]] | None = None

    async def start(self) -> None:
        """Raises: NotNowError, LinkError."""
        self._stream.connection.on_return = self._returned
        self._end = await self._stream.listen(self._take)
        await self.look()
        self.position = self._watcher.sequence

    async def close(self) -> None:
        if self._end:
            await self._end()

    async def look(self) -> None:
        """Have the watcher see the last record. Raises: NotNowError, LinkError."""
        last = await self._stream.last()
        self._watcher.seen(last.record if last else None, last.sequence if last else 0, clock())

    def _returned(self) -> None:
        self._watcher.connected(clock())
        self._event.set()

    async def _take(self, message: Msg) -> None:
        try:
            entry = self._stream.republished(message)
        except LinkError:
            return  # whoever has sent that: it is not stored
        if entry.sequence > self._watcher.sequence:
            self._watcher.seen(entry.record, entry.sequence, clock())
        if len(self._came) < _KEPT:
            self._came.append(entry)
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Wait until a record comes, or for some time."""
        self._event.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            pass

    async def next(self) -> Entry:
        """The next record.

        Raises:
            LinkError: the broker has dropped it already, or the connection is closed for good.
        """
        while True:
            while self._came and self._came[0].sequence <= self.position:
                self._came.popleft()
            if self._came and self._came[0].sequence == self.position + 1:
                return self._given(self._came.popleft())
            if not self._came:
                await self.wait(_QUIET_SECONDS)
                if self._came:
                    continue
            try:
                entry = await self._stream.entry(self.position + 1)
            except NotNowError:
                entry = None
            if entry:
                return self._given(entry)
            if self._came:  # a server that has not caught up has answered
                await asyncio.sleep(_AGAIN_SECONDS)

    def _given(self, entry: Entry) -> Entry:
        if entry.sequence != self.position + 1:
            raise LinkError(
                "the broker has dropped records that this standby has not read yet: it is too slow"
            )
        self.position = entry.sequence
        if entry.sequence > self._watcher.sequence:
            self._watcher.seen(entry.record, entry.sequence, clock())
        return entry
