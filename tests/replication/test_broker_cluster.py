"""A cluster of three servers on loopback, one of which is killed, stopped, or cut off by its own slowness."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import signal
from pathlib import Path

import pytest

from checkpoint.errors import LeaseError
from checkpoint.replication.broker.head import Head
from checkpoint.replication.broker.lease import Holder, Record, Watcher, clock
from checkpoint.replication.broker.nats_connection import (
    NatsConnection,
    NotNowError,
    WrongSequenceError,
    until_done,
)
from checkpoint.replication.broker.stream import Stream
from tests.replication.brokers import SHORT, Active, Standby, run
from tests.replication.flow import Flow
from tests.replication.servers import Cluster, Server

VERSIONS = pytest.mark.parametrize("version", ["2.9", "2.15"])
FAILURES = pytest.mark.parametrize("failure", ["killed", "stopped"])
pytestmark = pytest.mark.slow


async def replicas(active: Active) -> int:
    found = await active.broker.stream.connection.api("STREAM.INFO.uffdtrack-cluster")
    return int(found["config"]["num_replicas"])


async def fails(server: Server, failure: str) -> None:
    if failure == "killed":
        server.kill()
    else:
        server.signal(signal.SIGSTOP)


async def returns(server: Server, failure: str) -> None:
    if failure == "killed":
        await asyncio.to_thread(server.start)
    else:
        server.signal(signal.SIGCONT)


@VERSIONS
@FAILURES
def test_leader_fails(version: str, failure: str, tmp_path: Path) -> None:
    """The active and the standby are connected to different servers; each of them leads once, and fails."""

    async def main(cluster: Cluster) -> None:
        active = await Active.start(cluster.servers[0].address("cluster"), seconds=SHORT)
        standby = await Standby.start(cluster.servers[1].address("cluster"))
        await active.link()
        assert await replicas(active) == 3
        flow = Flow(active, standby)
        for n in (30, 60, 90):
            going = asyncio.create_task(flow.go_on(n))
            await standby.has(n - 20)
            leader = await asyncio.to_thread(cluster.leader, "uffdtrack-cluster")
            await fails(leader, failure)
            await going
            await returns(leader, failure)
        flow.check()
        assert active.broker.head.holder.record.number == 1
        await active.close()
        await standby.close()

    with Cluster(version, tmp_path) as cluster:
        run(main(cluster), 300)


@VERSIONS
def test_takeover_while_the_leader_fails(version: str, tmp_path: Path) -> None:
    """The active and the leader end at the same time: the standby goes on from what was acknowledged."""

    async def main(cluster: Cluster) -> None:
        active = await Active.start(cluster.servers[0].address("cluster"), seconds=SHORT)
        standby = await Standby.start(cluster.servers[1].address("cluster"))
        await active.link()
        flow = Flow(active, standby)
        going = asyncio.create_task(flow.go_on(50))
        await standby.has(30)
        leader = await asyncio.to_thread(cluster.leader, "uffdtrack-cluster")
        leader.kill()
        going.cancel()
        await active.broker.head.close()
        while not await standby.broker.fence():
            pass  # what was on its way when the active ended has been stored since
        assert not active.broker.may_release()
        assert set(active.acknowledged) <= set(standby.epochs)
        with pytest.raises(LeaseError):
            await active.broker.head.write()
        flow.check()
        await active.close()
        await standby.close()

    with Cluster(version, tmp_path) as cluster:
        run(main(cluster), 120)


@VERSIONS
def test_majority_is_gone(version: str, tmp_path: Path) -> None:
    """Nobody takes over, and nobody releases, until there is one again."""

    async def main(cluster: Cluster) -> None:
        active = await Active.start(cluster.servers[0].address("cluster"), seconds=SHORT)
        standby = await Standby.start(cluster.servers[0].address("cluster"))
        await active.link()
        await active.send(1)
        assert await active.ack() == 1
        for server in cluster.servers[1:]:
            server.kill()
        fencing = asyncio.create_task(standby.broker.fence())
        while active.broker.may_release():
            await asyncio.sleep(0.01)
        done, _ = await asyncio.wait([fencing], timeout=3)
        assert not done
        for server in cluster.servers[1:]:
            await asyncio.to_thread(server.start)
        taken = await fencing
        assert taken or active.broker.head.holder.record.number == 1
        assert not (active.broker.may_release() and standby.broker.may_release())
        await active.close()
        await standby.close()

    with Cluster(version, tmp_path) as cluster:
        run(main(cluster), 120)


async def contend(address: str, name: str, until: int) -> list[tuple[int, float, float]]:
    """Take the lease again and again. Returns: number, and from when until when it was ours, each time."""
    me = secrets.token_hex(4)
    found: list[tuple[int, float, float]] = []
    async with await NatsConnection.open(address) as connection:
        stream = Stream(connection, name)
        watcher = Watcher(me, clock())

        async def look() -> None:
            last = await stream.last()
            assert last
            record = Record(last.record.number, last.record.holder, last.record.serial, 0.05, me)
            watcher.seen(record, last.sequence, clock())

        while True:
            await until_done(look, address)
            assert watcher.record
            if watcher.record.number >= until:
                return found
            holder = watcher.claim(clock(), 0.05, standby=True)
            if not holder:
                continue
            head, begun = Head(stream, holder), None
            with contextlib.suppress(LeaseError):
                await head.write()
                begun = clock()
                for _ in range(secrets.randbelow(3)):
                    await head.write()
            if begun is not None:
                found.append((holder.record.number, begun, holder.valid_until))


async def race(urls: list[str], name: str, rounds: int) -> None:
    async with await NatsConnection.open(urls[0]) as connection:
        stream = Stream(connection, name)
        await until_done(lambda: stream.create(10_000_000), urls[0])
        await Head(stream, Holder(Record(1, "first", 0, 0.05), 0)).write()
    taken = await asyncio.gather(*(contend(url, name, rounds) for url in urls for _ in range(2)))
    held = sorted(one for by_one in taken for one in by_one)
    numbers = [number for number, _, _ in held]
    assert numbers == sorted(set(numbers)), "a number is of one holder"
    assert len(numbers) > rounds / 2
    for (_, _, until), (_, begun, _) in itertools.pairwise(held):
        assert until <= begun, "one held it when the next one did"


@VERSIONS
def test_lease_races(version: str, tmp_path: Path) -> None:
    """Six contenders at three servers: each record is of one of them, and never do two hold the lease."""
    with Cluster(version, tmp_path) as cluster:
        run(race([server.url for server in cluster.servers], "races", 200), 300)


@VERSIONS
def test_writers_at_the_same_time(version: str, tmp_path: Path) -> None:
    """Of records that are written behind the same one, one is stored."""

    async def accepted(streams: list[Stream], after: int) -> int:
        async def one(stream: Stream) -> bool:
            try:
                await stream.put(Record(1, secrets.token_hex(4), 1, 1.0), None, b"", after)
            except (WrongSequenceError, NotNowError):
                return False
            return True

        return sum(await asyncio.gather(*(one(stream) for stream in streams for _ in range(2))))

    async def main(cluster: Cluster) -> None:
        connections = [await NatsConnection.open(server.url) for server in cluster.servers]
        streams = [Stream(connection, "writers") for connection in connections]
        await until_done(lambda: streams[0].create(10_000_000), "")
        for _ in range(100):
            last = await streams[0].last()
            assert await accepted(streams, last.sequence if last else 0) <= 1
        for connection in connections:
            await connection.close()

    with Cluster(version, tmp_path) as cluster:
        run(main(cluster), 120)


def test_control_header_for_a_subject(tmp_path: Path) -> None:
    """Negative control, and why records have a stream of their own: a cluster of 2.9 stores all of them."""

    async def main(cluster: Cluster) -> None:
        connections = [await NatsConnection.open(server.url) for server in cluster.servers]
        config = {"name": "control", "subjects": ["control"], "storage": "file", "num_replicas": 3}

        async def made() -> None:
            if "error" in await connections[0].api("STREAM.CREATE.control", config):
                raise NotNowError("not yet")

        await until_done(made, "")
        last, most = await connections[0].store("control", b""), 0
        for _ in range(20):
            header = {"Nats-Expected-Last-Subject-Sequence": str(last)}
            stored = await asyncio.gather(
                *(one.store("control", b"", header) for one in connections for _ in range(2)),
                return_exceptions=True,
            )
            most = max(most, sum(isinstance(number, int) for number in stored))
            last = await connections[0].store("control", b"")
        assert most > 1
        for connection in connections:
            await connection.close()

    with Cluster("2.9", tmp_path) as cluster:
        run(main(cluster), 120)
