"""Links: what is sent comes, and a peer that does wrong is refused while others are served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import stat
from pathlib import Path

import pytest

from checkpoint.errors import LinkError
from checkpoint.replication.links.address import Address, parse
from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.links.frames import MAX_BODY, Kind, Message
from checkpoint.replication.links.link import connect, listen
from checkpoint.replication.links.socket_channel import SocketChannel
from checkpoint.replication.links.wire import Wire
from tests.replication.ends import (
    ANSWER,
    HELLO,
    Standby,
    greeted,
    listening,
    place_of,
    run,
    serves,
)
from uffdtrack.errors import InvalidInputError, PermissionDeniedError

SCHEMES = ("unix", "tcp", "tls")
BYE = Message(Kind.BYE)
BEAT = Message(Kind.BEAT)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_messages_come_in_order(scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials]) -> None:
    chance = random.Random(3)
    sizes = [0, 1, 1000, 16 << 10, 70_000, 300_000, MAX_BODY, 0, 5]
    parts = [Message(Kind.PART, {"n": n}, chance.randbytes(size)) for n, size in enumerate(sizes)]
    parts += [Message(Kind.BEAT, {"n": n}) for n in range(3000)]

    async def test() -> None:
        async with listening(place_of(scheme, tmp_path), pair[1]) as standby:
            channel = await greeted(standby.address, pair[0])
            sending = asyncio.create_task(channel.send(*parts, BYE))
            for part in parts:
                assert await channel.receive() == part
            await sending
            with pytest.raises(LinkError, match="has closed the link"):
                await channel.receive()
            assert await standby.ended.get() == "bye" and standby.refused.empty()
            await channel.close()

    run(test)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_who_sends_waits_while_the_other_end_is_slow(
    scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials]
) -> None:
    """No end holds 64 MiB; and a close does not wait for ever."""

    async def test() -> None:
        async with listening(place_of(scheme, tmp_path), pair[1], Slow()) as standby:
            channel = await connect(standby.address, pair[0])
            await channel.send(HELLO)
            sending = asyncio.create_task(channel.send(*[Message(Kind.PART, {}, bytes(MAX_BODY))] * 64))
            assert (await channel.receive()).kind is Kind.HELLO
            assert not sending.done()
            await serves(standby, pair[0])
            assert not sending.done()
            await channel.close()
            with pytest.raises(LinkError):
                await sending

    run(test)


class Slow(Standby):
    """Never reads what its first peer sends."""

    first = True

    async def talk(self, channel: SocketChannel) -> None:
        if not self.first:
            return await super().talk(channel)
        self.first = False
        await channel.receive()
        await channel.send(ANSWER)
        await asyncio.Event().wait()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_peer_that_dies(scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials]) -> None:
    """kill -9 in the middle of a message; its pidfd tells."""

    async def test() -> None:
        async with listening(place_of(scheme, tmp_path), pair[1]) as standby:
            pids: list[int | None] = []
            gone: list[bool] = []
            accept = standby.accept

            async def watch(channel: SocketChannel) -> None:
                pids.append(channel.peer_pid)
                fd = -1 if channel.peer_pidfd is None else os.dup(channel.peer_pidfd)
                await accept(channel)
                if fd >= 0:
                    readable = asyncio.Event()
                    asyncio.get_running_loop().add_reader(fd, readable.set)
                    await readable.wait()
                    gone.append(True)
                    asyncio.get_running_loop().remove_reader(fd)
                    os.close(fd)

            standby.listener._accept = watch
            child = fork_and_stay(standby.address, pair[0])
            await asyncio.to_thread(os.waitid, os.P_PID, child, os.WSTOPPED)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert "is lost" in await standby.ended.get()
            assert pids == [child if scheme == "unix" else None]
            await serves(standby, pair[0])

    run(test)


def fork_and_stay(address: Address, credentials: Credentials) -> int:
    """A process that has sent a half of a message, and has stopped."""
    child = os.fork()
    if child:
        return child
    with contextlib.suppress(BaseException):

        async def stay() -> None:
            channel = await greeted(address, credentials)
            part = b"".join(channel._encoder.encode(Message(Kind.PART, {}, bytes(1000))))
            await channel._wire.write([part[:500]])
            os.kill(os.getpid(), signal.SIGSTOP)

        asyncio.run(stay())
    os._exit(1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_last_word_comes(scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials]) -> None:
    """Also if the end that closes has read nothing, and much is on its way."""
    check_last_word(place_of(scheme, tmp_path), pair)


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_what_waiting_for_the_other_end_is_good_for(
    scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: TCP throws away what is on its way if something was not read."""

    async def nothing(wire: Wire) -> None:
        pass

    monkeypatch.setattr(Wire, "finish", nothing)
    with pytest.raises(LinkError, match="is lost"):
        check_last_word(place_of(scheme, tmp_path), pair)


def check_last_word(place: Address, pair: tuple[Credentials, Credentials]) -> None:
    linked, unread, closing = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Reads(Standby):
        async def talk(self, channel: SocketChannel) -> None:
            await channel.receive()
            await channel.send(ANSWER)
            await linked.wait()
            await channel.send(*[BEAT] * 3000)
            unread.set()
            await closing.wait()
            while (await channel.receive()).kind is not Kind.BYE:
                pass
            self.ended.put_nowait("bye")

    async def test() -> None:
        async with listening(place, pair[1], Reads()) as standby:
            channel = await greeted(standby.address, pair[0])
            linked.set()
            await unread.wait()
            await channel.send(*[Message(Kind.PART, {}, bytes(MAX_BODY))] * 3, BYE)
            closed = asyncio.create_task(channel.close())
            await asyncio.sleep(0)  # it has begun
            closing.set()
            await closed
            ended = await standby.ended.get()
            if ended != "bye":
                raise LinkError(ended)

    run(test)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_send_that_is_cancelled_tears_no_message(
    scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials]
) -> None:
    async def test() -> None:
        async with listening(place_of(scheme, tmp_path), pair[1], Slow()) as standby:
            channel = await greeted(standby.address, pair[0])
            sending = asyncio.create_task(channel.send(*[Message(Kind.PART, {}, bytes(MAX_BODY))] * 64))
            await serves(standby, pair[0])
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            with pytest.raises(LinkError, match="was closed"):
                await channel.send(BEAT)

    run(test)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_close_gives_a_reason_and_wakes_who_receives(
    scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials]
) -> None:
    async def test() -> None:
        async with listening(place_of(scheme, tmp_path), pair[1]) as standby:
            channel = await greeted(standby.address, pair[0])
            receiving = asyncio.create_task(channel.receive())
            await asyncio.sleep(0)
            await channel.close("another key \x1b[2J" + "y" * 5000)
            with pytest.raises(LinkError, match="was closed"):
                await receiving
            ended = await standby.ended.get()
            assert "refuses: another key ?[2J" in ended and len(ended) < 1200
            await channel.close()

    run(test)


def test_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mode; one listener at a time; what a dead one has left is replaced; names that are long."""
    place = tmp_path / ("d" * 120)
    place.mkdir()
    address = parse(f"unix://{place}/s")
    path = Path(address.path)

    async def test() -> None:
        async with listening(address) as standby:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            await serves(standby)
            with pytest.raises(InvalidInputError, match="is in use"):
                await listen(address, None, standby.accept)
            await serves(standby)
            monkeypatch.setattr(
                "checkpoint.replication.links.local.credentials_of", lambda s: (7, os.geteuid() + 1)
            )
            with pytest.raises(PermissionDeniedError, match="process 7 at the other end is user"):
                await connect(address)
            monkeypatch.undo()
        assert os.listdir(place) == []
        for error in ("there is no socket", "nobody listens at"):
            with pytest.raises(LinkError, match=error):
                await connect(address)
            with contextlib.chdir(place), socket.socket(socket.AF_UNIX) as dead:
                if not path.exists():
                    dead.bind("s")
        async with listening(address) as standby:
            await serves(standby)
            path.unlink()
            path.write_text("of somebody else's")
        assert path.read_text() and os.listdir(place) == ["s"]
        with pytest.raises(InvalidInputError, match="no socket"):
            await listen(address, None, Standby().accept)

    run(test)


def test_plain_tcp_stays_on_this_host(tmp_path: Path) -> None:
    async def test() -> None:
        for text in ("tcp://192.0.2.1:9", "tcp://[2001:db8::1]:9", "tcp://0.0.0.0:0"):
            for attempt in (connect(parse(text)), listen(parse(text), None, Standby().accept)):
                with pytest.raises(InvalidInputError, match="--insecure"):
                    await attempt
        # Negative control: who insists gets it.
        anywhere = await listen(parse("tcp://0.0.0.0:0"), None, Standby().accept, insecure=True)
        with contextlib.closing(socket.create_connection(("127.0.0.1", anywhere.address.port))):
            pass
        await anywhere.close()
        with pytest.raises(LinkError, match="cannot connect"):
            await connect(parse(f"tcp://127.0.0.1:{anywhere.address.port}"))
        with pytest.raises(InvalidInputError, match="uffdtrack keys"):
            await connect(parse("tls://127.0.0.1:9"))
        with pytest.raises(InvalidInputError, match="no direct link"):
            await connect(parse("nats://127.0.0.1:9/x"))

    run(test)
