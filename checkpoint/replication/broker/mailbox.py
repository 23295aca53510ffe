"""What has come for who receives, and why nothing more comes."""

from __future__ import annotations

import asyncio
from collections import deque

from checkpoint.replication.links.frames import Message
from uffdtrack.errors import UffdtrackError


class Mailbox:
    """Messages in their order.

    Attributes:
        error: why nothing more comes; None: it may.
    """

    def __init__(self, room: int) -> None:
        """Args: room: for so many messages."""
        self.error: UffdtrackError | None = None
        self._messages: deque[Message] = deque()
        self._room = room
        self._waiting: list[asyncio.Future[None]] = []

    def offer(self, message: Message) -> bool:
        """Put a message in if there is room. Returns: whether there was."""
        if len(self._messages) >= self._room:
            return False
        self._messages.append(message)
        self._wake()
        return True

    async def put(self, message: Message) -> None:
        """Put a message in, and wait while there is no room. Raises: UffdtrackError: nothing more comes."""
        while not self.offer(message):
            await self._wait()

    async def get(self) -> Message:
        """The next message. Raises: UffdtrackError: nothing more comes."""
        while not self._messages:
            await self._wait()
        message = self._messages.popleft()
        self._wake()
        return message

    def end(self, error: UffdtrackError) -> None:
        """Nothing more comes: who waits gets the first reason, behind what has come before."""
        self.error = self.error or error
        self._wake()

    async def _wait(self) -> None:
        if self.error:
            raise self.error
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()
