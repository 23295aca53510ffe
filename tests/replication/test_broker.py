"""Epochs through a broker: in parts, whole or not at all."""

from __future__ import annotations

import asyncio
import json

import pytest

from checkpoint.errors import LinkError
from checkpoint.replication.broker.broker_active import BrokerActive
from checkpoint.replication.broker.broker_standby import BrokerStandby
from checkpoint.replication.broker.nats_connection import NatsConnection
from checkpoint.replication.broker.nats_transport import AbruptTransport
from checkpoint.replication.broker.stream import Stream
from checkpoint.replication.links.frames import Kind, Message
from tests.replication.brokers import SHORT, messages, pair, run
from tests.replication.servers import Server
from uffdtrack.errors import StorageError, UnsupportedError


def test_epochs_of_all_sizes(server: Server) -> None:
    async def main() -> None:
        active, standby = await pair(server.address("sizes"))
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


def test_parts_without_a_record_are_not_given(server: Server) -> None:
    """An epoch that breaks off, and parts that somebody repeats or adds, leave no trace."""

    async def main() -> None:
        active, standby = await pair(server.address("parts"))
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
        active, standby = await pair(server.address("damaged"))
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


def test_slow_standby_holds_up_the_active(server: Server) -> None:
    """What it has not acknowledged is bounded: nothing is dropped that it has not read."""

    async def main() -> None:
        active, standby = await pair(server.address("slow"), max_bytes=4_000_000)
        standby.acknowledges = False
        await active.send(0, 1_500_000)
        await standby.has(0)
        sending = asyncio.create_task(active.send(1, 1_500_000))
        done, _ = await asyncio.wait([sending], timeout=SHORT)
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
        active, standby = await pair(server.address("foreign"))
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
            assert isinstance(connection.client._transport, AbruptTransport), "not the library's own"
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
