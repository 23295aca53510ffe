"""Who is active at a broker, who may take over, and who only follows."""

from __future__ import annotations

import asyncio

import pytest

from checkpoint.errors import LeaseError, LinkError
from checkpoint.replication.broker.broker_active import BrokerActive
from checkpoint.replication.broker.lease import State
from checkpoint.replication.links.frames import Kind, Message
from tests.replication.brokers import MIDDLE, SHORT, Active, Standby, pair, run
from tests.replication.servers import Server


def test_successor_is_named_before_an_acknowledgement_is_given(server: Server) -> None:
    async def main() -> None:
        active, standby = await pair(server.address("named"))
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


def test_stale_active_is_refused(server: Server) -> None:
    async def main() -> None:
        active, standby = await pair(server.address("stale"), seconds=SHORT)
        await active.send(0)
        assert await active.ack() == 0
        await active.broker.head.close()  # it renews no more, as if it were stopped
        lost = asyncio.Event()
        active.broker.on_lost = lost.set
        assert await standby.broker.fence()
        assert not active.broker.may_release()
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
        active, standby = await pair(server.address("alive"), seconds=MIDDLE)
        assert not await standby.broker.fence(), "it is no successor yet"
        await active.channel.close()
        await active.link()
        await active.send(0)
        assert await active.ack() == 0
        assert not await standby.broker.fence()
        await active.renews()
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
        active, first = await pair(server.address("several"))
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
        assert first.broker.is_successor and not second.broker.is_successor
        assert not await second.broker.fence(), "only the successor may take over"
        await second.close()
        third = await Standby.start(server.address("several"))
        await third.heard(Kind.HELLO)
        active.tip = ""
        await active.send(4)
        await third.has(4)
        assert await active.ack() == 4, "of the first"
        await first.close()
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


def test_standby_that_refuses_is_behind_the_others(server: Server) -> None:
    """One that is left from an earlier run says why, linked or not, and another one is linked."""

    async def main() -> None:
        active, left = await Active.start(server.address("left")), await Standby.start(server.address("left"))
        left.refuses = "it has epochs of another run"
        channel = await active.broker.connect()
        await channel.send(Message(Kind.HELLO, {"role": "active"}))
        # What it says, and that it asks again, come on two ways.
        with pytest.raises(LinkError, match=r"epochs of another run|has linked anew"):
            await channel.receive()
        await channel.close()
        second = await Standby.start(server.address("left"))
        await active.link()
        assert active.channel.standby == second.broker.me
        active.broker._refused.clear()  # it is answered again: it follows, and refuses that, too
        while left.broker.me not in active.broker._refused:
            await active.send(len(active.acknowledged))
            await active.ack()
        assert left.broker.me not in active.broker.followers.tips
        assert len(left.ends) == 2 and not left.linked
        await active.close()
        await left.close()
        await second.close()

    run(main())


def test_switchover(server: Server) -> None:
    """After it has resigned, the successor takes the lease at once, and is active then."""

    async def main() -> None:
        active, standby = await pair(server.address("switchover"))
        await active.send(0)
        assert await active.ack() == 0
        await active.channel.send(Message(Kind.FINAL, {"epoch": 0, "digest": "0"}))
        await standby.heard(Kind.FINAL)
        await active.broker.resign()
        assert not active.broker.may_release()
        await active.channel.send(Message(Kind.GO, {}))
        await standby.heard(Kind.GO)
        assert await standby.broker.fence()
        records, head = standby.broker._records, standby.broker._head
        while head and records.position < head.holder.sequence:
            await asyncio.sleep(0.01)  # it reads that it has the lease
        assert await standby.broker.fence(), "who runs the guest asks again"
        assert standby.channel
        await standby.channel.send(Message(Kind.TAKEN))
        while (await active.channel.receive()).kind is not Kind.TAKEN:
            pass
        third = await Standby.start(server.address("switchover"))
        now = Active(await BrokerActive.open(server.address("switchover"), heir_of=standby.broker.give))
        await now.link()
        await now.send(7)
        assert await now.ack() == 7
        assert third.epochs == [7]
        assert now.broker.head.holder.record.number == 2
        for one in (active, now, third, standby):
            await one.close()

    run(main())


def test_end_of_the_guest(server: Server) -> None:
    """After BYE nobody takes over, and a new active need not wait."""

    async def main() -> None:
        active, standby = await pair(server.address("bye"))
        await active.send(0)
        assert await active.ack() == 0
        await active.channel.send(Message(Kind.BYE, {"reason": "it has ended"}))
        await standby.heard(Kind.BYE)
        assert not await standby.broker.fence()
        other = await BrokerActive.open(server.address("bye"), seconds=1000)
        assert other.head.holder.record.number == 2
        await active.close()
        await other.close()
        await standby.close()

    run(main())


def test_end_of_the_guest_while_the_lease_is_waited_for(server: Server) -> None:
    """The link has been ended for that, and nobody answers a wish for another one: BYE comes all the same."""

    async def main() -> None:
        active, standby = await pair(server.address("bye-later"))
        await active.send(0)
        assert await active.ack() == 0
        fencing = asyncio.create_task(standby.broker.fence())
        while not standby.ends:
            await asyncio.sleep(0.01)
        await active.channel.send(Message(Kind.BYE, {"reason": "it has ended"}))
        await active.close()
        assert not await fencing
        await standby.heard(Kind.BYE)
        await standby.close()

    run(main())


def test_end_of_the_guest_that_was_missed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes behind it that would tell: who has no link asks for the last record."""

    async def main() -> None:
        active, standby = await pair(server.address("bye-missed"))
        await active.send(0)
        assert await active.ack() == 0
        broker, missed = standby.broker, asyncio.Event()

        def miss(message: object) -> None:
            missed.set()
            raise LinkError("it does not come")

        broker._free_to_link.clear()
        assert broker._channel
        broker._channel.mail.end(LinkError("the link is lost"))
        while not standby.ends:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(broker.stream, "republished", miss)
        await active.channel.send(Message(Kind.BYE, {"reason": "it has ended"}))
        last = active.broker.head.holder.sequence
        await active.broker.head.write(state=State.SEEKING)  # the link has ended before
        await active.broker.head.write()  # the lease was to be renewed
        assert active.broker.head.holder.sequence == last, "BYE is the last word"
        await active.close()
        await missed.wait()
        monkeypatch.undo()
        broker._free_to_link.set()
        await standby.heard(Kind.BYE)
        await standby.close()

    run(main())


def test_second_active_is_refused(server: Server) -> None:
    async def main() -> None:
        active = await Active.start(server.address("second"), seconds=MIDDLE)
        with pytest.raises(LeaseError, match="active under the name second"):
            await BrokerActive.open(server.address("second"))
        assert active.broker.head.holder.record.state is State.HELD
        await active.close()

    run(main())


def test_active_that_is_gone_is_followed_by_another(server: Server) -> None:
    async def main() -> None:
        active = await Active.start(server.address("gone"), seconds=SHORT)
        await active.close()
        other = await Active.start(server.address("gone"))
        assert other.broker.head.holder.record.number == 2
        assert not active.broker.may_release()
        await other.close()

    run(main())
