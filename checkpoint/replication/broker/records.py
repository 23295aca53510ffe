"""Reads the records of a stream, in their order, as they are stored."""

from __future__ import annotations

import asyncio
import contextlib
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
        self._looking: asyncio.Task[None] | None = None
        self._went_back = False

    async def start(self) -> None:
        """Raises: NotNowError, LinkError."""
        self._stream.connection.on_return = self._returned
        self._end = await self._stream.listen(self._take)
        await self.look()
        self.position = self._watcher.sequence

    async def close(self) -> None:
        if self._looking:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._end:
            await self._end()

    def begin(self, position: int) -> None:
        """Give what is behind a number from now on."""
        self.position, self._went_back = position, False

    async def look(self) -> None:
        """Have the watcher see the last record, also one from before those that the broker has lost.

        Raises: NotNowError, LinkError.
        """
        watcher = self._watcher
        before = watcher.sequence
        last = await self._stream.last()
        if not last or (watcher.sequence != before and last.sequence <= watcher.sequence):
            return  # what has come meanwhile is newer
        if last.sequence < before:
            self._went_back = True
            self._came.clear()
        watcher.seen(last.record, last.sequence, clock())
        self._event.set()

    def _returned(self) -> None:
        self._watcher.connected(clock())
        self.look_again()
        self._event.set()

    def look_again(self) -> None:
        """`look` until there is an answer, beside all else."""
        if not self._looking or self._looking.done():
            self._looking = asyncio.create_task(self._look_until_done())

    async def _look_until_done(self) -> None:
        with contextlib.suppress(LinkError):
            while True:
                try:
                    return await self.look()
                except NotNowError:
                    await asyncio.sleep(_AGAIN_SECONDS)

    async def _take(self, message: Msg) -> None:
        try:
            entry = self._stream.republished(message)
        except LinkError:
            return  # whoever has sent that: it is not stored
        if entry.sequence > self._watcher.sequence:
            self._watcher.seen(entry.record, entry.sequence, clock())
        elif (entry.sequence, entry.record) != (self._watcher.sequence, self._watcher.record):
            self.look_again()  # it is late, or the broker has lost records
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
            LinkError: the broker has dropped it already, or lost it; or the connection is closed for good.
        """
        while True:
            if self._went_back:
                raise LinkError("the broker has lost its last records")
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
