"""Messages that other threads send on a link: each comes once, in the order in which it was supplied."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint.errors import LinkError
from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.links.frames import MAX_BODY, Kind, Message
from checkpoint.replication.links.socket_channel import SocketChannel
from tests.replication.ends import ANSWER, Standby, greeted, listening, place_of, run

SCHEMES = ("unix", "tcp", "tls")


class Numbered:
    """Supplies parts with a number that counts on, whoever asks."""

    def __init__(self, count: int, largest: int) -> None:
        self.left: Iterator[int] = iter(range(count))
        self.largest = largest
        self.supplied = self.calls = 0
        self._chance = random.Random(count)

    def __call__(self) -> list[Message]:
        self.calls += 1
        found = []
        for n in itertools.islice(self.left, 3):
            body = self._chance.randbytes(self._chance.choice((0, 1, 500, 20_000, self.largest)))
            found.append(Message(Kind.PART, {"n": n}, body))
        self.supplied += len(found)
        return found


class Counting(Standby):
    """Notes the numbers that come, and waits now and then, so that who sends finds no room."""

    def __init__(self, slow: bool) -> None:
        super().__init__()
        self.numbers: list[int] = []
        self.slow = slow
        self.may_read = asyncio.Event()

    async def talk(self, channel: SocketChannel) -> None:
        await channel.receive()
        await channel.send(ANSWER)
        if self.slow:
            await self.may_read.wait()
        while (message := await channel.receive()).kind is not Kind.BYE:
            if message.kind is Kind.PART:
                self.numbers.append(message.meta["n"])
        self.ended.put_nowait("bye")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threads_and_the_loop_send(
    scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials]
) -> None:
    """Two threads that take what the kernel has room for, the loop that waits for room, and heartbeats."""
    count, supply = 900, Numbered(900, 100_000)

    async def test() -> None:
        async with listening(place_of(scheme, tmp_path), pair[1], Counting(slow=False)) as standby:
            channel = await greeted(standby.address, pair[0])
            now = 0

            def in_thread() -> None:
                nonlocal now
                while supply.supplied < count:
                    now += channel.send_now(supply)

            async def in_loop() -> None:
                while supply.supplied < count:
                    await channel.send_from(supply)
                    await channel.send(Message(Kind.BEAT))

            async with asyncio.TaskGroup() as tasks:
                for _ in range(2):
                    tasks.create_task(asyncio.to_thread(in_thread))
                tasks.create_task(in_loop())
            await channel.send(Message(Kind.BYE))
            assert await standby.ended.get() == "bye"
            assert isinstance(standby, Counting) and standby.numbers == list(range(count))
            assert now > 1
            await channel.close()

    run(test)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_finds_no_room(scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials]) -> None:
    """A peer that does not read: nothing is supplied that cannot be sent, and the rest follows by itself."""
    supply = Numbered(10_000, MAX_BODY)

    async def test() -> None:
        async with listening(place_of(scheme, tmp_path), pair[1], Counting(slow=True)) as standby:
            assert isinstance(standby, Counting)
            channel = await greeted(standby.address, pair[0])
            while await asyncio.to_thread(channel.send_now, supply):
                pass
            calls, sent = supply.calls, supply.supplied
            assert not await asyncio.to_thread(channel.send_now, supply) and supply.calls == calls
            standby.may_read.set()
            await channel.send(Message(Kind.BYE))
            assert await standby.ended.get() == "bye"
            assert standby.numbers == list(range(sent))
            await channel.close()

    run(test)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_link_that_is_closed_meanwhile(
    scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials]
) -> None:
    """By this end, while threads send: they are told, and nothing is supplied after that."""

    async def test() -> None:
        for n in range(20):
            async with listening(place_of(scheme, tmp_path), pair[1], Counting(slow=bool(n % 2))) as standby:
                channel = await greeted(standby.address, pair[0])
                supply, sends, closed = Numbered(1 << 30, 1000), threading.Event(), threading.Event()

                def in_thread(
                    channel: SocketChannel = channel,
                    supply: Numbered = supply,
                    sends: threading.Event = sends,
                    closed: threading.Event = closed,
                ) -> None:
                    while not closed.is_set():
                        channel.send_now(supply)
                        sends.set()

                thread = asyncio.create_task(asyncio.to_thread(in_thread))
                await asyncio.to_thread(sends.wait)
                await channel.close("that is enough" if n % 3 else "")
                calls = supply.calls
                assert not channel.send_now(supply)
                closed.set()
                await thread
                assert supply.calls == calls
                with pytest.raises(LinkError):
                    await channel.send_from(supply)

    run(test)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_peer_that_has_gone(scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials]) -> None:
    """Who reads learns it, even if it was a thread that found out."""

    async def test() -> None:
        async with listening(place_of(scheme, tmp_path), pair[1], Counting(slow=True)) as standby:
            channel = await greeted(standby.address, pair[0])
            reading = asyncio.create_task(channel.receive())
            await standby.listener.close()
            supply = Numbered(1 << 30, 1000)
            while await asyncio.to_thread(channel.send_now, supply):
                pass
            with pytest.raises(LinkError, match=r"has closed|lost|was closed|refuses"):
                await reading

    run(test)


def test_what_cannot_be_supplied(tmp_path: Path, pair: tuple[Credentials, Credentials]) -> None:
    """Its error goes to who sends; the link is as before."""

    def fails() -> list[Message]:
        raise LinkError("it does not follow")

    async def test() -> None:
        async with listening(place_of("unix", tmp_path), pair[1], Counting(slow=False)) as standby:
            channel = await greeted(standby.address, pair[0])
            with pytest.raises(LinkError, match="does not follow"):
                channel.send_now(fails)
            assert channel.send_now(Numbered(3, 10))
            await channel.send(Message(Kind.BYE))
            assert await standby.ended.get() == "bye"
            assert isinstance(standby, Counting) and standby.numbers == [0, 1, 2]
            await channel.close()

    run(test)
