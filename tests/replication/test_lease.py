"""The lease by itself: any clocks, delays and orders of events, and never two holders at the same time."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from checkpoint.errors import LeaseError, LinkError
from checkpoint.replication.broker import lease
from checkpoint.replication.broker.lease import RATE_MARGIN, Holder, Record, State, Watcher

SECONDS = 3.0


def held(number: int = 1, **changes: object) -> Record:
    return Record(**{"number": number, "holder": "a", "serial": 1, "seconds": SECONDS, **changes})  # type: ignore[arg-type]


def holder() -> Holder:
    return Holder(held(serial=0), 0)


def test_counted_from_before_it_was_asked_for() -> None:
    one = holder()
    assert not one.may_release(0.0)
    one.ask(100.0)
    assert not one.may_release(100.0)
    one.stored(1)  # whenever that was
    assert one.valid_until == 100.0 + SECONDS
    assert one.may_release(102.9) and not one.may_release(103.0)


def test_expired_is_not_lost() -> None:
    one = holder()
    one.ask(0.0)
    one.stored(1)
    assert not one.may_release(50.0)
    one.ask(50.0)
    one.missed(held(), 1)  # it was not stored yet
    one.stored(2)
    assert one.may_release(52.0)


def test_lost() -> None:
    one = holder()
    one.ask(0.0)
    one.stored(1)
    one.ask(1.0)
    with pytest.raises(LeaseError, match="b has it"):
        one.missed(held(2, holder="b"), 2)
    assert not one.may_release(1.0)
    with pytest.raises(LeaseError):
        one.ask(1.0)


def test_stale_server_says_nothing() -> None:
    """A leader that was stopped tells of older records, or of none, when it goes on."""
    one = Holder(held(2, holder="b", serial=0), 5)
    one.ask(0.0)
    one.missed(held(1), 5)  # not stored yet
    one.stored(6)
    one.ask(1.0)
    for record, sequence in ((held(1), 5), (held(1), 4)):
        assert not one.missed(record, sequence), "nothing is sent behind a record that is not ours"
    for record, sequence in ((None, 0), (one.record, 6)):
        one.missed(record, sequence)
    assert one.sequence == 6 and one.may_release(1.0)


def test_records_were_lost_and_are_written_anew() -> None:
    """The broker is back without our last records: the next one is behind what it has of ours."""
    one = holder()
    for sequence in range(1, 10):
        one.ask(float(sequence), successor="b" if sequence > 4 else "a")
        one.stored(sequence)
    one.ask(20.0)
    one.missed(held(successor="a"), 4)
    assert one.sequence == 4 and one.pending and one.pending.successor == "b"
    one.stored(5)
    assert one.may_release(21.0)


def test_lost_records_are_seen_to_be_lost() -> None:
    """An older successor waits for the whole lease, and the writer is faster."""
    watcher = Watcher("older", 0.0)
    watcher.seen(held(successor="b"), 9, 10.0)
    watcher.seen(held(successor="older"), 4, 20.0)
    assert watcher.claim(20.0 + SECONDS, SECONDS, standby=True) is None
    watcher.seen(held(successor="b", serial=20), 5, 21.0)
    assert watcher.claim(100.0, SECONDS, standby=True) is None


def test_claim_without_an_answer_is_waited_for() -> None:
    watcher = Watcher("b", 0.0)
    watcher.seen(held(2, holder="b"), 8, 10.0)
    assert watcher.claim(10.0 + SECONDS, SECONDS, standby=True) is None
    again = watcher.claim(10.0 + SECONDS * RATE_MARGIN, SECONDS, standby=True)
    assert again and again.record.number == 3


def test_records_were_lost_and_somebody_was_faster() -> None:
    one = Holder(held(2, holder="b", serial=0), 5)
    one.ask(0.0)
    one.stored(6)
    one.ask(1.0)
    with pytest.raises(LeaseError):
        one.missed(held(3, holder="c"), 6)


def test_given_up_and_stored_all_the_same() -> None:
    one = holder()
    one.ask(0.0)
    one.stored(1)
    first = one.ask(1.0)
    one.pending = None
    one.ask(2.0)
    one.missed(first, 2)
    one.stored(3)
    assert one.sequence == 3 and one.valid_until == 2.0 + SECONDS


def test_resigned_releases_nothing() -> None:
    one = holder()
    one.ask(0.0)
    one.stored(1)
    one.ask(0.1, state=State.RESIGNED)
    assert not one.may_release(0.1), "before it is known to be stored"
    one.stored(2)
    for n, state in enumerate((State.SEEKING, State.HELD), 3):
        assert one.ask(0.2, state=state).state is State.RESIGNED, "for good"
        one.stored(n)
    assert one.ask(0.3, state=State.ENDED).state is State.ENDED


def test_no_record_is_like_another() -> None:
    """One that was refused, and then stored all the same, is not taken for the next one."""
    one = holder()
    first = one.ask(0.0)
    one.pending = None
    assert one.ask(0.0) != first


def test_successor_waits_for_all_of_it() -> None:
    watcher = Watcher("b", 0.0)
    watcher.seen(held(successor="b"), 7, 10.0)
    assert watcher.claim(10.0 + SECONDS, SECONDS, standby=True) is None
    claimed = watcher.claim(10.0 + SECONDS * RATE_MARGIN, SECONDS, standby=True)
    assert claimed and claimed.sequence == 7
    assert claimed.ask(13.1).number == 2 and claimed.record.holder == "b"


def test_any_record_makes_it_wait_again() -> None:
    watcher = Watcher("b", 0.0)
    watcher.seen(held(successor="b"), 7, 10.0)
    watcher.seen(held(successor="b"), 7, 12.0)  # the same one
    assert watcher.free_at() == 10.0 + SECONDS * RATE_MARGIN
    watcher.seen(held(successor="b", serial=2), 8, 12.0)
    assert watcher.free_at() == 12.0 + SECONDS * RATE_MARGIN


def test_connection_that_was_lost_makes_it_wait_again() -> None:
    watcher = Watcher("b", 0.0)
    watcher.seen(held(successor="b"), 7, 10.0)
    watcher.connected(20.0)
    assert watcher.claim(20.1, SECONDS, standby=True) is None


def test_who_may_claim() -> None:
    for record, me, standby, may in (
        (None, "b", False, True),
        (None, "b", True, False),
        (held(successor="c"), "b", True, False),
        (held(), "b", True, False),
        (held(successor="b", state=State.ENDED), "b", True, False),
        (held(successor="c", state=State.ENDED), "b", False, True),
        (held(successor="b", state=State.RESIGNED), "b", True, True),
        (held(successor="c", state=State.RESIGNED), "b", False, False),
        (held(successor="b", state=State.SEEKING), "b", True, False),
    ):
        watcher = Watcher(me, 0.0)
        watcher.seen(record, 1 if record else 0, 0.0)
        assert (watcher.claim(0.0, SECONDS, standby) is not None) == may, record


def test_new_active_waits_longer_than_the_successor() -> None:
    watcher = Watcher("c", 0.0)
    watcher.seen(held(successor="b"), 1, 0.0)
    assert watcher.free_at() == 2 * SECONDS * RATE_MARGIN


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"number": 1}', held().text().replace("held", "x"), held().text().replace("3.0", "NaN"),
     held().text().replace("3.0", "-1"), held().text().replace('"a"', "1"), held().text()[:-1] + ',"x":1}'],
)  # fmt: skip
def test_malformed(text: str) -> None:
    with pytest.raises(LinkError):
        Record.parse(text)


def test_text() -> None:
    record = held(successor="b", state=State.SEEKING)
    assert Record.parse(record.text()) == record


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
