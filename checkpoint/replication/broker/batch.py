"""Messages as parts and the body of a record: how they are put there, and taken from there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from blake3 import blake3

from checkpoint.errors import LinkError
from checkpoint.replication.broker.nats_connection import AGAIN_SECONDS, NotNowError, until_done
from checkpoint.replication.broker.stream import Batch, Entry, Stream
from checkpoint.replication.links.frames import Decoder, Encoder, Kind, Message

_AT_ONCE = 8
"""Parts on their way."""
_ATTEMPTS = 100
"""To get a part that the server that answers may not have yet."""


class Packer:
    """Sends the parts of a batch while the messages come; what is left is for the record's body."""

    def __init__(self, stream: Stream, hello: Message, room: Callable[[int], Awaitable[None]]) -> None:
        """Begin with the active's HELLO, which says how the rest is to be read.

        Args:
            room: waits until so many bytes more may be kept by the broker.
        """
        self.size = 0
        self._stream = stream
        self._room = room
        self._encoder = Encoder()
        self._digest = blake3()
        self._rest = bytearray()
        self._parts: list[asyncio.Task[int]] = []
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._encode(hello)

    def _encode(self, message: Message) -> None:
        for buffer in self._encoder.encode(message):
            self._rest += buffer

    async def add(self, message: Message) -> None:
        """Raises: StorageError: the broker has no room for it. LinkError."""
        self._encode(message)
        most = self._stream.connection.max_payload - 1024
        while len(self._rest) >= most:
            await self._send(most)

    async def finish(self, link: str) -> tuple[Batch, bytes]:
        """The batch, all parts of which are stored, and the body. Raises: as `add`."""
        if len(self._rest) > self._stream.connection.max_payload // 2:
            await self._send(len(self._rest))
        body = bytes(self._rest)
        await self._room(len(body))
        self._digest.update(body)
        self.size += len(body)
        if self._parts:
            await asyncio.wait(self._parts)
        numbers = [_number(part) for part in self._parts]
        return Batch(link, _runs(numbers), self.size, self._digest.hexdigest()), body

    def cancel(self) -> None:
        """Send no more of it."""
        for part in self._parts:
            part.cancel()

    async def _send(self, size: int) -> None:
        data = bytes(self._rest[:size])
        del self._rest[:size]
        await self._room(size)
        self._digest.update(data)
        self.size += size
        await self._at_once.acquire()
        part = asyncio.create_task(self._store(data))
        part.add_done_callback(lambda done: self._at_once.release())
        part.add_done_callback(lambda done: done.cancelled() or done.exception())  # is told by `finish`
        self._parts.append(part)
        for done in (one for one in self._parts[:-_AT_ONCE] if one.done()):
            _number(done)  # raises early what went wrong

    async def _store(self, data: bytes) -> int:
        stream = self._stream
        return await until_done(lambda: stream.put_part(data), stream.connection.url)


def _number(part: asyncio.Task[int]) -> int:
    if part.cancelled():
        raise LinkError("the link was closed")
    return part.result()


def _runs(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return tuple(found)


async def unpack(stream: Stream, entry: Entry) -> AsyncIterator[Message]:
    """The messages of a record; the last of them only when all bytes were there and have their digest.

    Raises:
        LinkError: parts are missing or damaged.
    """
    assert entry.batch
    decoder, digest, size = Decoder(), blake3(), 0
    held: list[Message] = []
    async for piece in _pieces(stream, entry):
        if not piece:
            continue
        for message in held:
            yield message
        digest.update(piece)
        size += len(piece)
        held = decoder.feed(piece)
        if decoder.error:
            raise decoder.error
    if size != entry.batch.size or digest.hexdigest() != entry.batch.digest:
        raise LinkError(f"record {entry.sequence} of the broker's and its parts do not have their digest")
    for message in held:
        yield message


async def _pieces(stream: Stream, entry: Entry) -> AsyncIterator[bytes]:
    assert entry.batch
    numbers = [first + n for first, count in entry.batch.parts for n in range(count)]
    under_way: list[asyncio.Task[bytes]] = []
    try:
        for number in numbers:
            under_way.append(asyncio.create_task(_fetched(stream, number)))
            if len(under_way) == _AT_ONCE:
                yield await under_way.pop(0)
        while under_way:
            yield await under_way.pop(0)
    finally:
        for task in under_way:
            task.cancel()
    yield entry.body


async def _fetched(stream: Stream, number: int) -> bytes:
    for _ in range(_ATTEMPTS):
        try:
            found = await stream.part(number)
        except NotNowError:
            found = None
        if found is not None:
            return found
        await asyncio.sleep(AGAIN_SECONDS)
    raise LinkError("the broker has dropped parts that this standby has not read yet: it is too slow")


def carries_epoch(message: Message) -> bool:
    return message.kind in (Kind.BEGIN, Kind.PART, Kind.END)
