"""Both ends of links, for tests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from checkpoint.errors import LinkError
from checkpoint.replication.links.address import Address, parse
from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.links.frames import Decoder, Encoder, Kind, Message
from checkpoint.replication.links.link import connect, listen
from checkpoint.replication.links.listener import Listener
from checkpoint.replication.links.socket_channel import SocketChannel
from tests.helpers import DEADLINE

HELLO = Message(Kind.HELLO, {"role": "active"})
ANSWER = Message(Kind.HELLO, {"role": "standby"})


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE):
            await test()

    asyncio.run(limited())


@dataclass
class Standby:
    """Listens, and answers each message with its like until BYE.

    Attributes:
        refused: why connections did not come so far.
        ended: how those have ended that did.
    """

    listener: Listener = field(init=False)
    refused: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    ended: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def accept(self, channel: SocketChannel) -> None:
        try:
            await self.talk(channel)
        except LinkError as error:
            self.ended.put_nowait(str(error))

    async def talk(self, channel: SocketChannel) -> None:
        assert (await channel.receive()).kind is Kind.HELLO
        await channel.send(ANSWER)
        while (message := await channel.receive()).kind is not Kind.BYE:
            await channel.send(message)
        self.ended.put_nowait("bye")

    @property
    def address(self) -> Address:
        return self.listener.address


def place_of(scheme: str, directory: Path) -> Address:
    return parse({"unix": f"unix:{directory}/socket"}.get(scheme, f"{scheme}://127.0.0.1:0"))


@asynccontextmanager
async def listening(
    address: Address, credentials: Credentials | None = None, standby: Standby | None = None
) -> AsyncIterator[Standby]:
    made = standby or Standby()
    made.listener = await listen(
        address, credentials, made.accept, lambda error: made.refused.put_nowait(str(error))
    )
    try:
        yield made
    finally:
        await made.listener.close()


async def greeted(address: Address, credentials: Credentials | None = None) -> SocketChannel:
    channel = await connect(address, credentials)
    await channel.send(HELLO)
    assert (await channel.receive()).kind is Kind.HELLO
    return channel


async def serves(standby: Standby, credentials: Credentials | None = None) -> None:
    """It takes up a link with one who behaves."""
    channel = await greeted(standby.address, credentials)
    beat = Message(Kind.BEAT, {"taken": 1})
    await channel.send(beat)
    assert await channel.receive() == beat
    await channel.send(Message(Kind.BYE))
    await channel.close()
    while await standby.ended.get() != "bye":
        pass


class Raw:
    """A connection that sends bytes, not messages."""

    def __init__(self, address: Address) -> None:
        unix = address.scheme == "unix"
        self.socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self.socket.connect(address.path if unix else (address.host, address.port))
        self.socket.setblocking(False)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def read_all(self) -> bytes:
        """What comes until the other end closes."""
        found = b""
        loop = asyncio.get_running_loop()
        try:
            while part := await loop.sock_recv(self.socket, 1 << 16):
                found += part
        except ConnectionResetError:
            pass
        return found

    async def reason(self) -> str:
        """Why we are refused; the connection is closed then."""
        messages = Decoder().feed(await self.read_all())
        self.socket.close()
        assert messages[-1].kind is Kind.REFUSE
        return str(messages[-1].meta["reason"])


def frames_of(*messages: Message) -> list[bytes]:
    encoder = Encoder()
    return [b"".join(encoder.encode(message)) for message in messages]
