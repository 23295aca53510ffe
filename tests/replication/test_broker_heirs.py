"""The lease of a standby that has taken over goes over to the active that it becomes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from checkpoint.errors import LeaseError
from checkpoint.replication.broker.broker_active import BrokerActive
from checkpoint.replication.broker.nats_connection import NotNowError
from checkpoint.replication.links.address import Address
from checkpoint.replication.route import HeirRoute
from tests.replication.brokers import LONG, Active, Standby, pair, run
from tests.replication.servers import Server


async def taken_over(address: Address) -> tuple[Standby, Standby]:
    """A standby that has the lease, and another one, which had been linked, too, and has the epoch."""
    active, first = await pair(address, seconds=LONG)
    second = await Standby.start(address)
    await active.send(0)
    assert await active.ack() == 0
    await active.broker.resign()
    assert await first.broker.fence()
    await active.close()
    return first, second


def test_nobody_is_successor_before_the_first_acknowledgement(server: Server) -> None:
    async def main() -> None:
        address = server.address("unprotected")
        first, second = await taken_over(address)
        heir = Active(await BrokerActive.open(address, heir_of=first.broker.give))
        await heir.link()
        assert heir.tip == "", "what it has of the active before is none of ours"
        await heir.send(7)
        await second.has(7)
        assert heir.broker.head.holder.record.successor == ""
        assert not await second.broker.fence(), "it has the epoch, and the heir does not know"
        await heir.channel.close()
        await heir.link()
        assert heir.tip == "7"
        record = heir.broker.head.holder.record
        assert (record.number, record.successor) == (2, second.broker.me)
        await heir.broker.resign()
        assert await second.broker.fence()
        for one in (heir, first, second):
            await one.close()

    run(main())


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "lost"])
def test_a_record_is_under_way(server: Server, stored: bool) -> None:
    """It may come to be stored, and the next one is behind it, or in its place."""

    async def main() -> None:
        address = server.address(f"under-way-{stored}")
        first, second = await taken_over(address)
        head = first.broker._head
        assert head
        put, under_way = first.broker.stream.put, asyncio.Event()

        async def no_answer(*record: Any, **after: Any) -> int:
            if stored:
                await put(*record, **after)
            under_way.set()
            raise NotNowError("no answer")

        first.broker.stream.put = no_answer  # type: ignore[method-assign]
        writing = asyncio.create_task(head.write())
        await under_way.wait()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        heir = Active(await BrokerActive.open(address, heir_of=first.broker.give))
        holder = heir.broker.head.holder
        assert holder is head.holder and holder.pending
        await heir.link()
        await heir.send(1)
        assert await heir.ack() == 1
        last = await heir.broker.stream.last()
        assert last and last.record == holder.record and last.record.number == 2
        assert last.sequence == holder.sequence and first.broker.may_release()
        for one in (heir, first, second):
            await one.close()

    run(main())


def test_a_successor_may_be_named_without_our_knowing(server: Server) -> None:
    """Then another standby that has nothing does not make the heir unprotected."""

    async def main() -> None:
        address = server.address("named-unknown")
        first, second = await taken_over(address)
        loop = asyncio.get_running_loop()
        route = HeirRoute(address, 1 << 20, first.broker, loop)
        await route.open(lambda: None, lambda: None)
        assert route.nobody_may()
        broker = route._broker
        assert broker
        heir = Active(broker)
        await heir.link()
        await heir.send(1)
        put = broker.stream.put
        asked = asyncio.Event()

        async def no_answer(*record: Any, **after: Any) -> int:
            asked.set()
            raise NotNowError("no answer")

        broker.stream.put = no_answer  # type: ignore[method-assign]
        acknowledging = asyncio.create_task(heir.ack())
        await asked.wait()
        while broker.head.holder.pending and not broker.head.holder.pending.successor:
            await asyncio.sleep(0)  # that was a renewal
        acknowledging.cancel()
        await asyncio.gather(acknowledging, return_exceptions=True)
        assert heir.acknowledged == [] and not route.nobody_may()
        broker.stream.put = put  # type: ignore[method-assign]
        await broker.head.write()
        assert broker.head.holder.record.successor == second.broker.me and not route.nobody_may()
        for one in (heir, first, second):
            await one.close()

    run(main())


def test_a_lease_that_is_lost_goes_over_to_nobody(server: Server) -> None:
    async def main() -> None:
        address = server.address("lost")
        first, second = await taken_over(address)
        (await first.broker.give()).lost = "another one has it"
        with pytest.raises(LeaseError, match="another one has it"):
            await BrokerActive.open(address, heir_of=first.broker.give)
        for one in (first, second):
            await one.close()

    run(main())
