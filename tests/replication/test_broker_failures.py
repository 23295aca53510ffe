"""A server that is killed, stopped, full, or goes and comes back while epochs are on their way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkpoint.errors import LinkError
from checkpoint.replication.broker import nats_connection
from checkpoint.replication.broker.nats_connection import NatsConnection, NotNowError
from checkpoint.replication.broker.stream import Stream
from tests.conftest import missing
from tests.replication.brokers import SHORT, Active, Standby, pair, run
from tests.replication.flow import Flow
from tests.replication.servers import Server
from uffdtrack.errors import StorageError


async def ended(active: Active, standby: Standby) -> None:
    await active.close()
    await standby.close()


@pytest.mark.slow
def test_server_is_killed_and_comes_back(own_server: Server) -> None:
    async def main() -> None:
        active, standby = await pair(own_server.address("killed"))
        flow = Flow(active, standby)
        for n in (20, 40):
            going = asyncio.create_task(flow.go_on(n))
            await standby.has(n - 15)
            own_server.kill()
            await asyncio.to_thread(own_server.start)
            await going
        flow.check()
        assert active.broker.head.holder.record.number == 1
        await active.renews()
        await ended(active, standby)

    run(main())


def test_server_is_stopped(own_server: Server) -> None:
    """Nothing can be released when the lease has ended; after it goes on, everything does."""

    async def main() -> None:
        active, standby = await pair(own_server.address("stopped"), seconds=SHORT)
        flow = Flow(active, standby)
        await flow.go_on(5)
        own_server.signal(signal.SIGSTOP)
        going = asyncio.create_task(flow.go_on(10))
        while active.broker.may_release():
            await asyncio.sleep(0.01)
        own_server.signal(signal.SIGCONT)
        await going
        flow.check()
        await active.renews()
        await ended(active, standby)

    run(main())


def test_an_answer_that_is_late(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection takes it, and what comes behind it."""

    async def main() -> None:
        async with await NatsConnection.open(own_server.url) as connection:
            own_server.signal(signal.SIGSTOP)
            monkeypatch.setattr(nats_connection, "ANSWER_SECONDS", 0.05)
            await connection.flush()
            own_server.signal(signal.SIGCONT)
            monkeypatch.undo()
            assert "error" not in await connection.api("INFO")
            assert connection.number == 0, "it is the same connection"

    run(main())


@pytest.mark.slow
def test_connection_is_lost_for_good(own_server: Server) -> None:
    """A message that is too large makes the server close the connection; see that this is told."""

    async def main() -> None:
        active, standby = await pair(own_server.address("large"), seconds=SHORT)
        client = active.broker.stream.connection.client
        await client.publish("x", b"x")
        client._max_payload = 1 << 30
        with pytest.raises(LinkError):
            await active.send(0, 5_000_000)
        while active.broker.may_release():
            await asyncio.sleep(0.01)
        await ended(active, standby)

    run(main())


def test_small_messages(tmp_path: Path) -> None:
    """A server that takes small messages only: all parts are smaller."""

    async def main(server: Server) -> None:
        active, standby = await pair(server.address("small"))
        for n, size in enumerate([1000, 31_000, 33_000, 65_000, 1_000_000]):
            await active.send(n, size)
            assert await active.ack() == n
        await ended(active, standby)

    with Server("2.15", tmp_path, max_payload=65536) as server:
        run(main(server))


def test_standby_returns(own_server: Server) -> None:
    """Its link ends, epochs come without it, and it goes on from what it has, or from a base."""

    async def main() -> None:
        active, standby = await pair(own_server.address("returns"))
        await active.send(1)
        assert await active.ack() == 1
        await active.send(2)  # acknowledged, and not received
        await standby.has(2)
        await active.channel.close()
        await active.link()
        assert active.tip == "2"
        await active.send(3)
        assert await active.ack() == 3
        standby.tip = "77"
        await active.channel.close()
        await active.link()
        assert active.tip == "", "what it has is not known: a base"
        await active.send(4)
        assert await active.ack() == 4
        await ended(active, standby)

    run(main())


@pytest.mark.slow
def test_records_that_were_missed_are_fetched(own_server: Server) -> None:
    async def main() -> None:
        active, standby = await pair(own_server.address("missed"))
        records = standby.broker._records
        take, missed = records._take, 0

        async def take_some(message: object) -> None:
            nonlocal missed
            missed += 1
            if missed % 3 == 0:
                await take(message)  # type: ignore[arg-type]

        await records.close()
        records._end = await standby.broker.stream.listen(take_some)
        for n in range(6):
            await active.send(n)
            assert await active.ack() == n
        assert missed >= 6  # a record for each, and the lease's
        await ended(active, standby)

    run(main())


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    if os.geteuid():
        missing("root")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("version", [pytest.param("2.9", marks=pytest.mark.slow), "2.15"])
def test_disk_is_full(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without room just does not answer any more. What was acknowledged is there."""
    monkeypatch.setattr(nats_connection, "PATIENCE", 1.0)

    async def main(server: Server) -> None:
        active, standby = await pair(server.address("full"), max_bytes=60 << 20)
        acknowledged = 0
        with pytest.raises((StorageError, LinkError), match=r"no room|disk may be full"):
            for n in range(100):
                await active.send(n, 1_500_000)
                acknowledged += 1
                assert await active.ack() == n
        assert 5 < acknowledged < 40
        assert set(active.acknowledged) <= set(standby.epochs)
        await ended(active, standby)

    believes = {"max_file_store": 1 << 30}
    with small_disk(tmp_path / "disk", 32 << 20) as disk:
        with Server(version, tmp_path, store=disk / "js", jetstream=believes) as server:
            run(main(server))


def test_no_jetstream(tmp_path: Path) -> None:
    async def main(server: Server) -> None:
        async with await NatsConnection.open(server.url) as connection:
            with pytest.raises((LinkError, NotNowError)):
                await Stream(connection, "none").create(1_000_000)

    with Server("2.15", tmp_path) as server:
        conf = (server.root / "server.conf").read_text()
        server.kill()
        (server.root / "server.conf").write_text(conf[: conf.index("jetstream")])
        server.process = subprocess.Popen([server.binary, "-c", str(server.root / "server.conf")], stderr=-3)
        while not server.answers():
            assert not server.ended()
        run(main(server))


def test_streams_are_as_large_as_there_is_room(tmp_path: Path) -> None:
    async def main(server: Server) -> None:
        async with await NatsConnection.open(server.url) as connection:
            assert await Stream(connection, "small").create(64 << 20) == 64 << 20
            assert await Stream(connection, "small").create(80 << 20) == 80 << 20, "it is enlarged"
            assert await Stream(connection, "half").create(1 << 30) == 64 << 20, "both have the same"
            with pytest.raises(StorageError):
                await Stream(connection, "none").create(1 << 30)
            names = (await connection.api("STREAM.NAMES"))["streams"]
            assert not [name for name in names if "none" in name], "nothing is left of it"

    with Server("2.15", tmp_path, jetstream={"max_file_store": 340 << 20}) as server:
        run(main(server))
