"""A broker that is back without its last records, as after a power failure: what was acknowledged is kept."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import pytest

from checkpoint.errors import LeaseError
from checkpoint.replication.broker.head import Head
from checkpoint.replication.broker.lease import Holder, Record, clock
from checkpoint.replication.broker.nats_connection import NatsConnection, NotNowError
from checkpoint.replication.broker.stream import Stream
from tests.replication.brokers import LONG, MIDDLE, SHORT, Active, Standby, run
from tests.replication.flow import Flow
from tests.replication.servers import Server

NAME = "back"


def copied(server: Server, to: Path) -> None:
    server.signal(signal.SIGSTOP)
    shutil.copytree(server.store, to)
    server.signal(signal.SIGCONT)


def put_back(server: Server, store: Path) -> None:
    server.kill()
    shutil.rmtree(server.store)
    shutil.copytree(store, server.store)
    server.start()


async def linked_to(active: Active, standby: Standby) -> None:
    while active.channel.standby != standby.broker.me:
        await active.channel.close()
        await active.link()


@pytest.mark.slow
def test_older_successor_takes_nothing(own_server: Server, tmp_path: Path) -> None:
    """The records are gone that named the successor: the active names it again, and it alone takes over."""

    async def main() -> None:
        address = own_server.address(NAME)
        active = await Active.start(address, seconds=MIDDLE)
        older, newer = await Standby.start(address), await Standby.start(address)
        await active.link()
        await linked_to(active, older)
        await active.send(1)
        assert await active.ack() == 1
        await asyncio.to_thread(copied, own_server, tmp_path / "old")
        await active.channel.close()
        await active.link()
        await linked_to(active, newer)
        flow = Flow(active, newer)
        flow.sent, active.tip = 1, ""
        await flow.go_on(20)
        lost = active.broker.head.holder.sequence

        await asyncio.to_thread(put_back, own_server, tmp_path / "old")
        while not 0 < active.broker.head.holder.sequence < lost:
            await asyncio.sleep(0.01)
        await flow.go_on(25)
        assert active.broker.head.holder.record.successor == active.channel.standby
        assert active.broker.head.holder.record.number == 1
        await active.renews()

        await linked_to(active, newer)
        await flow.go_on(30)
        await active.broker.close()  # it is gone
        assert not await older.broker.fence()
        assert await newer.broker.fence()
        assert newer.epochs[-1] == active.acknowledged[-1] == 30
        await older.close()
        await newer.close()

    run(main())


def test_all_is_lost(own_server: Server) -> None:
    """A server that is back without its store is used as a new one."""

    async def main() -> None:
        active = await Active.start(own_server.address(NAME), seconds=SHORT)
        standby = await Standby.start(own_server.address(NAME))
        await active.link()
        flow = Flow(active, standby)
        await flow.go_on(10)
        own_server.kill()
        await asyncio.to_thread(shutil.rmtree, own_server.store)
        await asyncio.to_thread(own_server.start)
        await flow.go_on(20)
        flow.check()
        await active.renews()
        assert active.broker.head.holder.record.successor == standby.broker.me
        assert active.broker.head.holder.record.number == 1
        await active.close()
        assert await standby.broker.fence()
        await standby.close()

    run(main())


@pytest.mark.slow
def test_claim_is_not_sent_to_a_broker_that_comes_back(own_server: Server) -> None:
    """Who waits for the lease on one connection has it on this connection, or waits again."""

    async def main() -> None:
        async with await NatsConnection.open(own_server.url) as connection:
            stream = Stream(connection, NAME)
            await stream.create(1_000_000)
            first = Head(stream, Holder(Record(1, "first", 0, LONG, "second"), 0))
            await first.claim()
            second = Head(stream, Holder(Record(2, "second", 0, LONG), 1))
            own_server.kill()
            claiming = asyncio.create_task(second.claim())
            await asyncio.to_thread(own_server.start)
            with pytest.raises(NotNowError):
                await claiming
            while connection.number < 1:
                await asyncio.sleep(0.01)
            last = await stream.last()
            if last and last.record.holder == "first":
                await first.write()
                with pytest.raises(LeaseError):
                    await Head(stream, Holder(Record(2, "second", 0, LONG), 1)).claim()
            assert not second.holder.may_release(clock())
            await first.close()

    run(main())
