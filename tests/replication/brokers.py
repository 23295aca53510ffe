"""An active and its standbys at a broker, as tests drive them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from checkpoint.errors import LinkError
from checkpoint.replication.broker.broker_active import BrokerActive
from checkpoint.replication.broker.broker_channel import BrokerChannel
from checkpoint.replication.broker.broker_standby import BrokerStandby
from checkpoint.replication.broker.follower_channel import FollowerChannel
from checkpoint.replication.links.address import Address
from checkpoint.replication.links.frames import Kind, Message
from tests.helpers import DEADLINE

T = TypeVar("T")
SHORT, MIDDLE, LONG = 0.5, 2.0, 60.0
"""Seconds of leases: of one that is to end; of one that must not end while a host is busy; of all others."""


def run(main: Coroutine[Any, Any, T], seconds: float = 2 * DEADLINE) -> T:
    return asyncio.run(asyncio.wait_for(main, seconds))


def contents(n: int, size: int) -> bytes:
    return bytes([n % 251 + 1]) * size


def messages(n: int, size: int, parent: str, part: int = 1 << 20) -> list[Message]:
    """Epoch n, whose digest is "n"."""
    whole = contents(n, size)
    return [
        Message(Kind.BEGIN, {"epoch": n, "parent": parent}),
        *(Message(Kind.PART, {"offset": at}, whole[at : at + part]) for at in range(0, size, part)),
        Message(Kind.END, {"epoch": n, "size": size, "digest": str(n)}),
    ]


class Standby:
    """Follows, acknowledges what is whole, and keeps it.

    Attributes:
        epochs: numbers of the whole ones, in their order.
        others: kinds of the other messages.
        ends: why links have ended.
    """

    def __init__(self, broker: BrokerStandby) -> None:
        self.broker = broker
        self.tip = ""
        self.epochs: list[int] = []
        self.others: list[Kind] = []
        self.ends: list[str] = []
        self.linked = False
        self.acknowledges = True
        self.refuses = ""
        self.channel: FollowerChannel | None = None
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(broker.serve(self._accept))

    @classmethod
    async def start(cls, address: Address) -> Standby:
        return cls(await BrokerStandby.open(address))

    async def _accept(self, channel: FollowerChannel) -> None:
        self.channel, self.linked = channel, channel.linked
        try:
            await self._follow(channel)
        except LinkError as error:
            self.ends.append(str(error))

    async def _follow(self, channel: FollowerChannel) -> None:
        parent, body = "", bytearray()
        while True:
            message = await channel.receive()
            match message.kind:
                case Kind.HELLO if self.refuses:
                    await channel.close(self.refuses)
                    raise LinkError(self.refuses)
                case Kind.HELLO:
                    tip = {"epoch": int(self.tip), "digest": self.tip} if self.tip else None
                    await channel.send(Message(Kind.HELLO, {"tip": tip}))
                case Kind.BEGIN:
                    parent, body = str(message.meta["parent"]), bytearray()
                case Kind.PART:
                    assert message.meta["offset"] == len(body)
                    body += message.body
                case Kind.END:
                    n = int(message.meta["epoch"])
                    assert parent in ("", self.tip), f"epoch {n} is a child of {parent}, not of {self.tip}"
                    assert bytes(body) == contents(n, message.meta["size"])
                    self.tip = str(n)
                    self.epochs.append(n)
                    if self.acknowledges:
                        await channel.send(Message(Kind.ACK, {"epoch": n, "digest": self.tip}))
            async with self._changed:
                if message.kind not in (Kind.BEGIN, Kind.PART, Kind.END):
                    self.others.append(message.kind)
                self._changed.notify_all()

    async def has(self, n: int) -> None:
        """Wait until it has an epoch."""
        async with self._changed:
            await self._changed.wait_for(lambda: n in self.epochs)

    async def heard(self, kind: Kind) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: kind in self.others)

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.broker.close()


class Active:
    """Sends epochs to whoever is linked, as children of each other, and knows what was acknowledged."""

    def __init__(self, broker: BrokerActive) -> None:
        self.broker = broker
        self.tip = ""
        self.acknowledged: list[int] = []
        self.channel: BrokerChannel

    @classmethod
    async def start(cls, address: Address, seconds: float = LONG, **options: Any) -> Active:
        return cls(await BrokerActive.open(address, seconds=seconds, **options))

    async def link(self) -> None:
        """Be linked to the next standby; the next epoch is a child of its tip if that is ours."""
        while True:
            with contextlib.suppress(LinkError):
                self.channel = await self.broker.connect()
                await self.channel.send(Message(Kind.HELLO, {"role": "active"}))
                hello = await self.channel.receive()
                assert hello.kind is Kind.HELLO
                tip = hello.meta["tip"]
                self.tip = str(tip["digest"]) if tip else ""
                return

    async def send(self, n: int, size: int = 1000, part: int = 1 << 20) -> None:
        await self.channel.send(*messages(n, size, self.tip, part))
        self.tip = str(n)

    async def ack(self) -> int:
        """Wait for the next acknowledgement."""
        while (message := await self.channel.receive()).kind is not Kind.ACK:
            pass
        self.acknowledged.append(int(message.meta["epoch"]))
        return self.acknowledged[-1]

    async def renews(self) -> None:
        """Wait until it may release; a renewal may come late where the host is busy."""
        while not self.broker.may_release():
            await self.broker.head.write()

    async def close(self) -> None:
        await self.broker.close()


async def pair(address: Address, **options: Any) -> tuple[Active, Standby]:
    """An active and the standby that it is linked to."""
    active = await Active.start(address, **options)
    standby = await Standby.start(address)
    await active.link()
    return active, standby
