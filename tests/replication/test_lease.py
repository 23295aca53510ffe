"""The lease by itself: what its holder and those who wait for it make of what happens."""

from __future__ import annotations

import pytest

from checkpoint.errors import LeaseError, LinkError
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
