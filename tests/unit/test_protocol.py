"""The table of the protocol, and the machines that interpret it."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from checkpoint.replication.protocol.machine import Epoch
from checkpoint.replication.protocol.peer import Active, Standby
from checkpoint.replication.protocol.table import (
    ACTIVE,
    STANDBY,
    ActiveAction,
    ActiveEvent,
    ActiveState,
    StandbyAction,
    StandbyEvent,
    StandbyState,
)
from tests.unit.test_layers import ROOT, Imports

A, AE, AA = ActiveState, ActiveEvent, ActiveAction

S, SE, SA = StandbyState, StandbyEvent, StandbyAction
BASE, NEXT = Epoch(0, "base", "", (3,)), Epoch(1, "next", "base", (5,))
EPOCHS = (BASE, NEXT, Epoch(2, "other", "next", (6,)), Epoch(3, "stray", "unknown", (7,)))
DIGESTS = ("", "unknown", *(epoch.digest for epoch in EPOCHS))


def names(done: list[Any]) -> list[str]:
    return [do.action.name for do in done]


def where(rows: Any, action: Any) -> set[str]:
    """The events at which an action is done."""
    return {row.event.name for row in rows if action in row.actions}


def followed(now: float = 0.0) -> Active:
    active = Active(1.0, now)
    active.on(AE.LINKED, now)
    active.on(AE.TAKEN, now, epoch=BASE)
    active.on(AE.ACKED, now, digest="base")
    return active


def following() -> Standby:
    standby = Standby(1.0)
    standby.on(SE.LINKED, 0.0, run="run")
    standby.on(SE.EPOCH, 0.0, epoch=BASE)
    return standby


def test_no_machine_does_io() -> None:
    """All that they import, of ours and of others."""
    allowed = {"__future__", "collections", "enum", "math", "typing", "checkpoint"}
    for name, ours in (("table", set()), ("machine", {"table"}), ("peer", {"machine", "table"})):
        names = Imports(ROOT / f"checkpoint/replication/protocol/{name}.py").names
        assert {one.split(".")[0] for one in names} <= allowed
        assert {one.split(".")[-1] for one in names if one.startswith("checkpoint.")} == ours


def test_each_row_of_a_state_and_event_can_hold() -> None:
    """Behind a row without a guard none of the same state and event counts."""
    for rows in (ACTIVE, STANDBY):
        for n, row in enumerate(rows):
            before = [other for other in rows[:n] if other[:2] == row[:2]]
            assert all(other.guard for other in before), row
            assert row.guard not in [other.guard for other in before], row


def test_each_guard_is_one_of_the_machine() -> None:
    for machine, rows in ((Active(1.0), ACTIVE), (Standby(1.0), STANDBY)):
        assert all(hasattr(machine, f"is_{row.guard}") for row in rows if row.guard)


def test_each_name_of_the_table_is_used() -> None:
    """REFUSE is also what is done without a row."""
    for rows, refuse, *enums in ((ACTIVE, AA.REFUSE, A, AE, AA), (STANDBY, SA.REFUSE, S, SE, SA)):
        used = {name for row in rows for name in (row.state, row.event, row.next, *row.actions)} | {refuse}
        assert used == {name for enum in enums for name in enum}


def test_what_the_head_of_the_table_says() -> None:
    assert where(ACTIVE, AA.RELEASE) == {"ACKED", "LINKED"}
    assert all(row.guard == "known" for row in ACTIVE if row.event is AE.LINKED and AA.RELEASE in row.actions)
    acknowledging = [row for row in STANDBY if {SA.SEND_ACK, SA.MERGE} & set(row.actions)]
    assert {(row.guard, row.actions) for row in acknowledging} == {("fits", (SA.MERGE, SA.SEND_ACK))}
    decided = {S.FENCING, S.RUNNING, S.OVER}
    assert not any({SA.SEND_ACK, SA.SEND_HELLO} & set(row.actions) for row in STANDBY if row.state in decided)
    assert where(STANDBY, SA.TAKE_OVER) == {"GO", "FENCED", "ACTIVE_DEAD"}
    entering = {row for row in STANDBY if row.next is S.RUNNING and row.state is not S.RUNNING}
    assert entering == {row for row in STANDBY if SA.TAKE_OVER in row.actions}
    unlinking = [row for row in ACTIVE if row.next is A.SEEKING and row.state is not A.SEEKING]
    assert all(AA.TAKE_BACK in row.actions for row in unlinking)
    assert {(row.event, row.guard) for row in ACTIVE if AA.FOLLOW in row.actions} == {(AE.LINKED, "known")}
    stopping = [row for row in ACTIVE if row.event in (AE.STAND_IN, AE.FENCE_LOST)]
    assert all((row.next, row.actions) == (A.ENDED, (AA.STOP,)) for row in stopping)
    going = [row for row in ACTIVE if AA.SEND_GO in row.actions and row.state is not A.RESIGNED]
    assert [row.actions for row in going] == [(AA.RESIGN, AA.SEND_GO)]
    assert {row.next for row in ACTIVE if row.state is A.RESIGNED} == {A.RESIGNED, A.ENDED}
    first = [row for row in ACTIVE if AA.SEND_END in row.actions and row.state is A.GREETED]
    assert [row.actions for row in first] == [(AA.HOLD, AA.SEND_END)]
    letting = [(row.guard, row.actions) for row in ACTIVE if AA.LET_OUT in row.actions]
    assert letting == [("anew", (AA.REBASE, AA.LET_OUT))]
    later = {row.state for row in ACTIVE if AA.SEND_END in row.actions and AA.HOLD not in row.actions}
    into = {(row.state, row.event) for row in ACTIVE if row.next in later and row.state not in later}
    assert into == {(A.GREETED, AE.ACKED), (A.SEEKING, AE.LINKED)}, "both know what was sent"
    forgetting = {(row.event, row.guard, row.next) for row in STANDBY if SA.FORGET in row.actions}
    assert forgetting == {(SE.LINKED, "newer", S.EMPTY)}
    assert {row.state for row in STANDBY if SA.FORGET in row.actions} == {S.FOLLOWING, S.LOST}


def test_what_has_no_row_is_refused_and_changes_nothing() -> None:
    active, standby = followed(), following()
    before = dict(vars(active)), dict(vars(standby))
    for done in (
        active.on(AE.READY, 0.0, digest="base"),
        active.on(AE.ACKED, 0.0, digest="unknown"),
        standby.on(SE.GO, 0.0),
        standby.on(SE.EPOCH, 0.0, epoch=EPOCHS[3]),
        standby.on(SE.FENCED, 0.0),
    ):
        assert names(done) == ["REFUSE"]
        assert "is not expected while FOLLOW" in done[0].reason
    assert (vars(active), vars(standby)) == before


def test_silence_is_told_at_its_time() -> None:
    active = followed(now=5.0)
    assert active.silent_at == 6.0
    assert active.tick(5.9) == []
    active.heard(5.9)
    assert active.tick(6.0) == []
    assert names(active.tick(6.9)) == ["CLOSE", "TAKE_BACK"]
    assert active.state is A.SEEKING


def test_own_events_are_not_heard_from_the_other_side() -> None:
    active = followed()
    active.on(AE.TAKEN, 0.9, epoch=NEXT)
    assert names(active.tick(1.0)) == ["CLOSE", "TAKE_BACK"]


def test_a_lost_standby_asks_its_fence_again_after_each_deadline() -> None:
    standby = following()
    standby.on(SE.UNLINKED, 0.5)
    assert standby.tick(0.9) == []
    assert names(standby.tick(1.0)) == ["RUN_FENCE"]  # since the last word, not since the link's end
    assert names(standby.on(SE.NOT_FENCED, 3.0)) == ["SAY_MAY_NOT"]
    assert standby.tick(3.9) == []
    assert names(standby.tick(4.0)) == ["RUN_FENCE"]


def test_a_lease_that_has_ended_outdoes_any_event() -> None:
    active = followed()
    active.renewed(2.0)
    active.on(AE.TAKEN, 1.9, epoch=NEXT)
    done = active.on(AE.ACKED, 2.0, digest="next")
    assert names(done) == ["STOP"]
    assert (active.state, active.acked, active.may_release) == (A.ENDED, BASE, False)
    active.renewed(9.0)
    assert names(active.on(AE.LINKED, 2.1)) == ["REFUSE"]


def test_what_was_sent_is_known_when_the_link_comes_back() -> None:
    active = followed()
    active.on(AE.TAKEN, 0.0, epoch=NEXT)
    active.on(AE.UNLINKED, 0.0)
    assert (active.sent, active.known) == ((), (BASE, NEXT))
    assert [do.epoch for do in active.on(AE.LINKED, 0.0, digest="next")] == [NEXT, NEXT]
    assert active.parent == NEXT


def test_a_standby_with_another_tip_gets_a_base() -> None:
    active = followed()
    active.on(AE.UNLINKED, 0.0)
    assert names(active.on(AE.LINKED, 0.0, digest="unknown")) == ["REBASE"]
    assert names(active.on(AE.TAKEN, 0.0, epoch=NEXT)) == ["TAKE_BACK"]
    assert active.parent is None


def test_where_output_is_held_a_guest_has_ended_when_its_last_epoch_is_acknowledged() -> None:
    for holds, told in ((False, ["SEND_BYE"]), (True, [])):
        active = Active(1.0, holds=holds)
        for _ in range(2):
            active.on(AE.LINKED, 0.0)
            active.on(AE.TAKEN, 0.0, epoch=BASE)
            assert names(active.on(AE.GUEST_ENDED, 0.0)) == []
            active.on(AE.UNLINKED, 0.0)
        active.on(AE.LINKED, 0.0, digest="base")
        assert names(active.on(AE.GUEST_ENDED, 0.0)) == told
    active.on(AE.TAKEN, 0.0, epoch=NEXT, final=True)
    assert names(active.on(AE.GUEST_ENDED, 0.0)) == []
    active.on(AE.ACKED, 0.0, digest="next")
    assert names(active.on(AE.GUEST_ENDED, 0.0)) == ["SEND_BYE"]


def test_an_heir_holds_output_from_its_first_epoch_on() -> None:
    """What was not sent was taken back. When the guest ends before that, there is nothing more."""
    active = Active(1.0, holds=True, is_heir=True)
    assert names(active.on(AE.TAKEN, 0.0, epoch=BASE)) == ["TAKE_BACK"]
    active.on(AE.LINKED, 0.0)
    active.on(AE.UNLINKED, 0.0)
    active.on(AE.LINKED, 0.0)
    assert active.unprotected and names(active.on(AE.SWITCHOVER, 0.0)) == ["SAY_MAY_NOT"]
    assert names(active.on(AE.TAKEN, 0.0, epoch=BASE)) == ["HOLD", "SEND_END"]
    active.on(AE.UNLINKED, 0.0)
    assert not active.unprotected, "a standby may have it"
    assert names(active.on(AE.LINKED, 0.0)) == ["REBASE", "LET_OUT"], "this one has nothing"
    assert active.unprotected and names(active.on(AE.TAKEN, 0.0, epoch=BASE)) == ["HOLD", "SEND_END"]
    active.on(AE.ACKED, 0.0, digest="base")
    active.on(AE.UNLINKED, 0.0)
    assert names(active.on(AE.LINKED, 0.0)) == ["REBASE"] and not active.unprotected, "somebody had it"
    for links, told in ((0, []), (1, ["SEND_BYE"])):
        active = Active(1.0, holds=True, is_heir=True)
        for _ in range(links):
            active.on(AE.LINKED, 0.0)
        assert names(active.on(AE.GUEST_ENDED, 0.0)) == told and active.state is A.ENDED


def test_a_standby_forgets_what_is_from_before_a_takeover() -> None:
    """And takes nothing from that time any more."""
    for lost in (False, True):
        standby = following()
        if lost:
            standby.on(SE.UNLINKED, 0.0)
        done = standby.on(SE.LINKED, 0.0, run="run", term=2)
        assert names(done)[-2:] == ["FORGET", "SEND_HELLO"] and done[-1].epoch is None
        assert (standby.state, standby.tip, standby.term) == (S.EMPTY, None, 2)
        assert names(standby.on(SE.LINKED, 0.0, run="run", term=1)) == ["REFUSE"]
        assert names(standby.on(SE.ACTIVE_DEAD, 0.0)) == ["DROP_PARTIAL", "SAY_MAY_NOT"]
        standby.on(SE.EPOCH, 0.0, epoch=BASE)
        assert names(standby.on(SE.LINKED, 0.0, run="run", term=1)) == ["REFUSE"]
        standby.on(SE.ACTIVE_DEAD, 0.0)
        for term, told in ((1, "REFUSE"), (2, "SEND_TAKEN"), (3, "REFUSE")):
            assert names(standby.on(SE.LINKED, 0.0, run="run", term=term)) == [told]


def test_takeover_has_what_was_released() -> None:
    standby = following()
    standby.noted((2,))
    standby.on(SE.SILENT, 1.0)
    (done,) = standby.on(SE.FENCED, 1.1)
    assert (done.action, done.epoch, standby.released) == (SA.TAKE_OVER, BASE, (2,))


told = st.fixed_dictionaries(
    {},
    optional={
        "digest": st.sampled_from(DIGESTS),
        "epoch": st.sampled_from(EPOCHS),
        "final": st.booleans(),
        "run": st.sampled_from(("run", "another")),
        "term": st.integers(0, 2),
    },
)


@given(st.lists(st.tuples(st.sampled_from(AE), told), max_size=40))
def test_no_events_whatever_confuse_an_active(events: list[Any]) -> None:
    """A peer that says anything at any time gets no output out that it has not acknowledged."""
    active, sent, said = Active(1.0, is_heir=True), set(), set()
    for event, data in events:
        assert not (active.acked and active.unprotected)
        ended = active.state in (A.RESIGNED, A.ENDED)
        said |= {data.get("digest")} if event in (AE.LINKED, AE.ACKED) else set()
        done = active.on(event, 0.0, **data)
        for do in done:
            sent |= {do.epoch} if do.action is AA.SEND_END else set()
            if do.action is AA.RELEASE:
                assert do.epoch in sent and do.epoch.digest in said
        assert not ended or active.state in (A.RESIGNED, A.ENDED)


@given(st.lists(st.tuples(st.sampled_from(SE), told), max_size=40))
def test_no_events_whatever_confuse_a_standby(events: list[Any]) -> None:
    """It never runs a guest but from an epoch that it has merged, and then says no more that it has one."""
    standby, merged = Standby(1.0), None
    for event, data in events:
        before = standby.state
        for do in standby.on(event, 0.0, **data):
            merged = do.epoch if do.action is SA.MERGE else None if do.action is SA.FORGET else merged
            assert do.action is not SA.TAKE_OVER or (do.epoch and do.epoch == merged)
            assert do.action not in (SA.SEND_ACK, SA.SEND_HELLO) or before in (S.EMPTY, S.FOLLOWING, S.LOST)
        assert before not in (S.RUNNING, S.OVER) or standby.state is before


def test_the_page_shows_the_table() -> None:
    spec = spec_from_file_location("draw_protocol", ROOT / "tools/draw_protocol.py")
    assert spec and spec.loader
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.PAGE.read_text()
    assert tool.redrawn(text) == text, "run tools/draw_protocol.py"
    assert tool.redrawn(text.replace("LINKED [known]", "LINKED")) == text
