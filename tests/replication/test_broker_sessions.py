"""Sessions through a broker: what standbys have is what the guest has, and one of them goes on with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from checkpoint.errors import LeaseError, LinkError
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.following import BrokerFollowing
from checkpoint.replication.links.frames import Kind, Message
from checkpoint.replication.protocol.table import ActiveEvent, ActiveState
from checkpoint.replication.route import BrokerRoute
from tests.kvm.conftest import Machine, kvm, write
from tests.replication.pair import active_by, standby_by, take, until
from tests.replication.servers import Server
from tests.replication.test_mirror import begin, differing, guest, write_at_random
from uffdtrack.errors import StorageError

assert kvm and guest  # fixtures


def test_two_standbys(server: Server, guest: Callable[[str], Machine], tmp_path: Path) -> None:
    """Both have each epoch in the end; when the active has gone, one runs the guest, and one alone."""
    there, chance = guest("kvm-ring"), random.Random(1)
    address = server.address("two")
    with ExitStack() as stack:
        standbys = [
            stack.enter_context(standby_by(BrokerFollowing(address), tmp_path / name, deadline=1.0))
            for name in ("one", "two")
        ]
        with active_by(BrokerRoute(address, 1 << 20)) as edge:
            session, _ = begin(edge, there)
            for turn in range(10):
                write_at_random(there, chance, turn)
                take(session)
                assert any(one.replica.mirror and not differing(one, there) for one in standbys)
            until(lambda: all(one.machine.whole == edge.outgoing.sent for one in standbys), "one lags behind")
            assert all(differing(one, there) == [] for one in standbys)
            write(there, 0, 3, 7)
            take(session)
            linked = [not one.ask() for one in standbys]
            assert sorted(linked) == [False, True], "one only follows"
            assert "only follows; ask at the active" in standbys[linked.index(False)].ask()
            until(lambda: edge.asked, "the active was not asked")
        until(lambda: any(one.outcome for one in standbys), "nobody takes over")
        (running,) = [one for one in standbys if one.outcome]
        assert running.outcome == "takeover" and differing(running, there) == []
        (other,) = [one for one in standbys if one is not running]
        until(lambda: "may not take over" in str(other.tell), "the other one was not asked")
        assert not other.outcome


def test_lost_lease_is_no_answer_to_a_handover(server: Server) -> None:
    """Who has resigned has not heard that the guest runs before the standby says so."""
    for resigned in (True, False):
        with active_by(BrokerRoute(server.address(f"resigned-{resigned}"), 1 << 20)) as edge:

            async def lose(edge: ActiveEdge = edge, resigned: bool = resigned) -> None:
                if resigned:
                    edge.machine.state = ActiveState.RESIGNED
                edge._lost()

            edge.do(lose())
            assert edge.is_resigned == resigned and not edge.is_taken
            assert bool(edge.stopped) != resigned
            if resigned:
                edge.call(lambda edge=edge: edge.on(ActiveEvent.STAND_IN))  # type: ignore[misc]
                assert edge.is_taken and edge.stopped


@pytest.mark.parametrize("error", [LinkError, LeaseError, StorageError])
def test_what_is_said_to_nobody(error: type[Exception]) -> None:
    """A heartbeat may be on its way when the lease is lost: `receive` has told why already."""

    class Gone:
        async def send(self, *messages: Message) -> None:
            raise error("it is lost")

    asyncio.run(ActiveEdge.say(None, Gone(), Message(Kind.BEAT)))  # type: ignore[arg-type]
