"""Epochs through a broker: in parts, whole or not at all, from one active at a time."""

from __future__ import annotations

import asyncio
import json

import pytest

from checkpoint.errors import LeaseError, LinkError
from checkpoint.replication.broker_active import BrokerActive
from checkpoint.replication.broker_standby import BrokerStandby
from checkpoint.replication.frames import Kind, Message
from checkpoint.replication.lease import State
from checkpoint.replication.nats_connection import NatsConnection
from checkpoint.replication.stream import Stream
from tests.replication.brokers import SECONDS, Active, Standby, messages, run
from tests.replication.servers import Server
from uffdtrack.errors import StorageError, UnsupportedError


async def pair(server: Server, name: str, **options: int) -> tuple[Active, Standby]:
    active = await Active.start(server.address(name), **options)
    standby = await Standby.start(server.address(name))
    await active.link()
    return active, standby


def test_epochs_of_all_sizes(server: Server) -> None:
    async def main() -> None:
        active, standby = await pair(server, "sizes")
        for n, size in enumerate([0, 1, 1000, 500_000, 600_000, (1 << 20) - 1, 1 << 20, 5_000_000]):
            await active.send(n, size)
            assert await active.ack() == n
        await active.send(100, 300_000, part=1000)
        assert await active.ack() == 100
        assert standby.epochs == [*range(8), 100]
        assert active.broker.may_release()
        await active.close()
        await standby.close()

    run(main())


def test_successor_is_named_before_an_acknowledgement_is_given(server: Server) -> None:
    async def main() -> None:
        active, standby = await pair(server, "named")
        record = active.broker.head.holder.record
        assert record.successor == ""
        await active.send(0)
        await standby.has(0)
        assert await active.ack() == 0
        last = await active.broker.stream.last()
        assert last and last.record.successor == standby.broker.me
        await active.close()
        await standby.close()

    run(main())


def test_parts_without_a_record_are_not_given(server: Server) -> None:
    """An epoch that breaks off, and parts that somebody repeats or adds, leave no trace."""

    async def main() -> None:
        active, standby = await pair(server, "parts")
        stream = active.broker.stream
        await active.channel.send(*messages(0, 3_000_000, "")[:-1])
        await stream.put_part(b"of somebody else")
        active.broker.known.clear()
        await active.channel.close("the epoch cannot be had")
        await active.link()
        await active.send(1, 3_000_000)
        assert await active.ack() == 1
        assert standby.epochs == [1]
        await active.close()
        await standby.close()

    run(main())


def test_damaged_parts_are_refused(server: Server) -> None:
    """Negative control of the digest: a record that names another part gives no END."""

    async def main() -> None:
        active, standby = await pair(server, "damaged")
        stream, put = active.broker.stream, active.broker.stream.put_part

        async def damaged(data: bytes) -> int:
            return await put(b"x" + data[1:] if len(data) < 1_000_000 else data)

        stream.put_part = damaged  # type: ignore[method-assign]
        await active.send(0, 1_800_000)
        with pytest.raises(LinkError):
            while True:
                active.broker.head.holder.check()
                await asyncio.wait_for(active.channel.receive(), 5)
        stream.put_part = put  # type: ignore[method-assign]
        assert standby.epochs == []
        assert "digest" in standby.ends[0] or "frame" in standby.ends[0]
        await active.link()
        await active.send(1)
        assert await active.ack() == 1
        await active.close()
        await standby.close()

    run(main())


def test_stale_active_is_refused(server: Server) -> None:
    async def main() -> None:
        active, standby = await pair(server, "stale")
        await active.send(0)
        assert await active.ack() == 0
        await active.broker.head.close()  # it renews no more, as if it were stopped
        lost = asyncio.Event()
        active.broker.on_lost = lost.set
        assert await standby.broker.fence()
        assert not active.broker.may_release()
        assert standby.broker.may_release()
        with pytest.raises(LeaseError):
            await active.send(1, 3_000_000)
        assert lost.is_set()
        last = await active.broker.stream.last()
        assert last and last.record.number == 2 and last.record.holder == standby.broker.me
        await active.close()
        await standby.close()

    run(main())


def test_living_active_is_not_fenced(server: Server) -> None:
    async def main() -> None:
        active, standby = await pair(server, "alive")
        assert not await standby.broker.fence(), "it is no successor yet"
        await active.channel.close()
        await active.link()
        await active.send(0)
        assert await active.ack() == 0
        assert not await standby.broker.fence()
        assert active.broker.may_release()
        await active.channel.close()
        await active.link()
        assert active.tip == "0", "it goes on from what it has"
        await active.send(1)
        assert await active.ack() == 1
        await active.close()
        await standby.close()

    run(main())


def test_several_standbys(server: Server) -> None:
    """The second follows, gets a base when there is one, and is linked when the first has gone."""

    async def main() -> None:
        active, first = await pair(server, "several")
        wanted = asyncio.Event()
        active.broker.on_base_wanted = wanted.set
        await active.send(0)
        assert await active.ack() == 0
        second = await Standby.start(server.address("several"))
        await wanted.wait()
        await active.send(1)
        active.tip = ""
        await active.send(2)
        await active.send(3)
        assert [await active.ack() for _ in range(3)] == [1, 2, 3]
        await second.has(3)
        assert first.epochs == [0, 1, 2, 3]
        assert second.epochs == [2, 3] and not second.linked
        assert not await second.broker.fence(), "only the successor may take over"
        await second.close()
        third = await Standby.start(server.address("several"))
        await third.heard(Kind.HELLO)
        active.tip = ""
        await active.send(4)
        await third.has(4)
        await first.close()
        assert await active.ack() == 4
        await active.channel.close()
        await active.link()
        assert active.tip == "4"
        assert active.broker.head.holder.record.successor == third.broker.me
        await active.send(5)
        assert await active.ack() == 5
        assert third.epochs == [4, 5] and third.linked
        await active.close()
        await third.close()

    run(main())


def test_switchover(server: Server) -> None:
    """After it has resigned, the successor takes the lease at once, and is active then."""

    async def main() -> None:
        active, standby = await pair(server, "switchover")
        await active.send(0)
        assert await active.ack() == 0
        await active.channel.send(Message(Kind.FINAL, {"epoch": 0, "digest": "0"}))
        await standby.heard(Kind.FINAL)
        await active.broker.resign()
        assert not active.broker.may_release()
        await active.channel.send(Message(Kind.GO, {}))
        await standby.heard(Kind.GO)
        assert await standby.broker.fence()
        third = await Standby.start(server.address("switchover"))
        now = Active(await standby.broker.promote())
        await now.link()
        await now.send(7)
        assert await now.ack() == 7
        assert third.epochs == [7]
        await active.close()
        await now.close()
        await third.close()

    run(main())


def test_end_of_the_guest(server: Server) -> None:
    """After BYE nobody takes over, and a new active need not wait."""

    async def main() -> None:
        active, standby = await pair(server, "bye")
        await active.send(0)
        assert await active.ack() == 0
        await active.channel.send(Message(Kind.BYE, {"reason": "it has ended"}))
        await standby.heard(Kind.BYE)
        assert not await standby.broker.fence()
        other = await BrokerActive.open(server.address("bye"), seconds=1000)
        assert other.head.holder.record.number == 2
        with pytest.raises(LeaseError):
            await active.broker.head.write()
        await active.close()
        await other.close()
        await standby.close()

    run(main())


def test_second_active_is_refused(server: Server) -> None:
    async def main() -> None:
        active = await Active.start(server.address("second"))
        with pytest.raises(LeaseError, match="active under the name second"):
            await BrokerActive.open(server.address("second"))
        assert active.broker.head.holder.record.state is State.HELD
        await active.close()
        other = await Active.start(server.address("second"))  # after the lease has ended
        assert other.broker.head.holder.record.number == 2
        await other.close()

    run(main())


def test_slow_standby_holds_up_the_active(server: Server) -> None:
    """What it has not acknowledged is bounded: nothing is dropped that it has not read."""

    async def main() -> None:
        active, standby = await pair(server, "slow", max_bytes=4_000_000)
        standby.acknowledges = False
        await active.send(0, 1_500_000)
        await standby.has(0)
        sending = asyncio.create_task(active.send(1, 1_500_000))
        done, _ = await asyncio.wait([sending], timeout=SECONDS)
        assert not done, "it waits"
        standby.acknowledges = True
        assert standby.channel
        await standby.channel.send(Message(Kind.ACK, {"epoch": 0, "digest": "0"}))
        assert await active.ack() == 0
        await sending
        assert await active.ack() == 1
        with pytest.raises(StorageError, match="larger than half"):
            await active.send(2, 3_000_000)
        await active.close()
        await standby.close()

    run(main())


def test_foreign_acknowledgement_is_refused(server: Server) -> None:
    async def main() -> None:
        active, standby = await pair(server, "foreign")
        assert standby.channel
        await standby.channel.send(Message(Kind.ACK, {"epoch": 9, "digest": "9"}))
        with pytest.raises(LinkError, match="not sent"):
            await active.ack()
        assert active.broker.head.holder.record.successor == ""
        await active.close()
        await standby.close()

    run(main())


def test_what_is_not_ours_is_refused(server: Server) -> None:
    async def main() -> None:
        async with await NatsConnection.open(server.url) as connection:
            stream = Stream(connection, "theirs")
            await stream.create(1_000_000)
            await connection.request("uffdtrack.theirs.record", b"something")
            with pytest.raises(LinkError, match="not uffdtrack's"):
                await BrokerActive.open(server.address("theirs"))
            answer = await connection.api("STREAM.MSG.GET.uffdtrack-theirs", {"seq": 1})
            assert json.dumps(answer["message"]), "it is left alone"

    run(main())


def test_nobody_answers() -> None:
    async def main() -> None:
        server = Server.__new__(Server)
        server.port = 1
        for opens in (BrokerActive.open, BrokerStandby.open):
            with pytest.raises(LinkError, match="no NATS server answers"):
                await opens(server.address("x"))

    run(main())


def test_client_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nats.errors", None)

    async def main() -> None:
        with pytest.raises(UnsupportedError, match=r"uffdtrack\[nats\]"):
            await NatsConnection.open("nats://127.0.0.1:1")

    run(main())
