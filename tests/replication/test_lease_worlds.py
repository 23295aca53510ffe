"""The lease in worlds with any clocks, delays and losses: never two holders at the same time."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from checkpoint.errors import LeaseError
from checkpoint.replication.broker import lease
from checkpoint.replication.broker.lease import Holder, Record, Watcher
from tests.replication.test_lease import SECONDS, held


class World:
    """A stream that takes a record only behind its last one; two hosts whose clocks run as they like."""

    looks = True
    """After a loss the holder looks at the last record before it writes."""

    def __init__(self, seed: int, rate: float, loses: bool) -> None:
        """Args: loses: now and then its last records are lost."""
        self.loses = loses
        self.connection = 0  # counts the losses
        self.random = random.Random(seed)
        self.now = 0.0
        self.log: list[Record] = []
        self.rates = [1.0, rate] if seed % 2 else [rate, 1.0]
        self.offsets = [self.random.uniform(0, 1000) for _ in self.rates]

    def clock(self, host: int) -> float:
        return self.offsets[host] + self.now * self.rates[host]

    def passes(self) -> None:
        """Any delay of a message, or of a process that does not run."""
        longest = self.random.choice([0.0, 0.0, 0.01, 0.01, 0.1, SECONDS / 2, SECONDS * 1.5])
        self.now += self.random.uniform(0.0, longest)

    def put(self, record: Record, after: int) -> bool:
        if after != len(self.log):
            return False
        self.log.append(record)
        return True


def rounds(world: World) -> Iterator[list[bool]]:
    """One holds and renews, the other one is its successor and takes over; which of them may release."""
    active = Holder(held(serial=0, successor="1", holder="0"), 0)
    watcher = Watcher("1", world.clock(1))
    taken: Holder | None = None
    connection = 0
    for _ in range(60):
        world.passes()
        if world.random.random() < 0.4 and not active.lost:
            record = active.pending or active.ask(world.clock(0))
            world.passes()
            is_known = connection == world.connection or not world.looks
            connection = world.connection
            if is_known and world.put(record, active.sequence):
                world.passes()
                if world.random.random() < 0.8:  # else the answer is lost
                    active.stored(len(world.log))
            else:
                last = world.log[-1]
                if last == record:
                    active.stored(len(world.log))
                else:
                    try:
                        active.missed(last, len(world.log))
                    except LeaseError:
                        assert last.holder == "1"
        if world.random.random() < 0.5:
            seen = len(world.log) - world.random.choice([0, 0, 1])
            world.passes()
            if seen > watcher.sequence:
                watcher.seen(world.log[seen - 1], seen, world.clock(1))
        if world.loses and not taken and len(world.log) > 1 and world.random.random() < 0.2:
            del world.log[-world.random.randrange(1, len(world.log)) :]
            world.connection += 1
            watcher.connected(world.clock(1))
            watcher.seen(world.log[-1], len(world.log), world.clock(1))
        if not taken and (claim := watcher.claim(world.clock(1), SECONDS, standby=True)):
            record = claim.ask(world.clock(1))
            world.passes()
            if world.put(record, claim.sequence):
                claim.stored(len(world.log))
                taken = claim
        yield [active.may_release(world.clock(0)), taken is not None and taken.may_release(world.clock(1))]


def both(seeds: range, rate: float, loses: bool = False) -> int:
    """In how many worlds both may release at the same time; the lease is taken over in most of them."""
    found = took = 0
    for seed in seeds:
        states = list(rounds(World(seed, rate, loses)))
        found += any(all(state) for state in states)
        took += any(state[1] for state in states)
    assert took > len(seeds) / 4
    return found


@pytest.mark.parametrize("rate", [1.0, 1 / 1.009, 1.009])
@pytest.mark.parametrize("loses", [False, True])
def test_never_two(rate: float, loses: bool) -> None:
    assert both(range(600), rate, loses) == 0


def test_never_two_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: who waits too short a time, or on a clock that is too fast; who reckons too long."""
    assert both(range(600), 1.5) > 0
    with monkeypatch.context() as patch:
        patch.setattr(Watcher, "connected", lambda self, now: None)
        assert both(range(600), 1.0, loses=True) > 0
    with monkeypatch.context() as patch:
        patch.setattr(World, "looks", False)
        assert both(range(600), 1.0, loses=True) > 0
    with monkeypatch.context() as patch:
        patch.setattr(lease, "RATE_MARGIN", 0.5)
        assert both(range(600), 1.0) > 0
    with monkeypatch.context() as patch:
        patch.setattr(Holder, "may_release", lambda self, now: not self.lost and self.valid_until > -math.inf)
        assert both(range(600), 1.0) > 0
    with monkeypatch.context() as patch:
        patch.setattr(World, "put", lambda self, record, after: self.log.append(record) is None)
        assert both(range(600), 1.0) > 0
