"""The protocol with one mistake each, and what has to be found of it: negative controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from checkpoint.replication.protocol.machine import Do, Epoch, Marks, Told
from checkpoint.replication.protocol.peer import Active, Standby
from checkpoint.replication.protocol.table import (
    ACTIVE,
    STANDBY,
    ActiveAction,
    ActiveEvent,
    ActiveState,
    Row,
    StandbyAction,
    StandbyEvent,
    StandbyState,
)
from tests.unit.protocol_world import Setup

A, AE, AA = ActiveState, ActiveEvent, ActiveAction
S, SE, SA = StandbyState, StandbyEvent, StandbyAction


@dataclass(frozen=True)
class Mutant:
    """A mistake, where it shows, and what the search has to say: an invariant, or a question."""

    setup: Setup
    broken: str = ""
    stuck: str = ""
    slow: bool = False


def put(table: tuple[Any, ...], *rows: Row[Any, Any, Any]) -> Any:
    """The table with other rows, in place of those for the same state, event and guard."""
    keys = {row[:3] for row in rows}
    return (*rows, *(row for row in table if row[:3] not in keys))


def active(*rows: Row[Any, Any, Any], **attributes: Any) -> type[Active]:
    return type("MutantActive", (Active,), {"rows": put(ACTIVE, *rows), **attributes})


def standby(*rows: Row[Any, Any, Any], **attributes: Any) -> type[Standby]:
    return type("MutantStandby", (Standby,), {"rows": put(STANDBY, *rows), **attributes})


def yes(self: object, told: Told) -> bool:
    return True


def no(self: object, told: Told) -> bool:
    return False


class ReleasesEarly(Active):
    rows = put(ACTIVE, Row(A.FOLLOWED, AE.TAKEN, "follows", A.FOLLOWED, (AA.SEND_END, AA.RELEASE)))

    def _do(self, action: ActiveAction, event: ActiveEvent, told: Told) -> Do[ActiveAction]:
        done = super()._do(action, event, told)
        return Do(action, told.epoch) if (action, event) == (AA.RELEASE, AE.TAKEN) else done


class FollowsAnyTip(Active):
    def is_known(self, told: Told) -> bool:
        if told.digest and not super().is_known(told):
            self.known += (Epoch(0, told.digest, "", (0,)),)
        return super().is_known(told)


class LooksAtNoClock(Active):
    def _at(self, event: ActiveEvent, now: float) -> ActiveEvent:
        return event


class CountsTooMuch(Standby):
    def noted(self, released: Marks) -> None:
        super().noted((released[0] + 1,))


class TrustsItsDisk(Standby):
    def __init__(self, deadline: float, now: float = 0.0, tip: Epoch | None = None) -> None:
        super().__init__(deadline, now, tip)
        if tip:
            self.state, self.run = S.LOST, "run"


AFTER_BYE = Row(S.OVER, SE.SILENT, None, S.FENCING, (SA.RUN_FENCE,))
LOCK: dict[str, Any] = {"fence": "lock", "epochs": 2, "faults": 1}
MUTANTS = {
    "releases before the acknowledgement": Mutant(
        Setup(**LOCK, active=ReleasesEarly), "released that no standby has acknowledged"
    ),
    "takes over without a fence": Mutant(
        Setup(**LOCK, standby=standby(Row(S.LOST, SE.SILENT, None, S.RUNNING, (SA.TAKE_OVER,)))),
        "two may release",
    ),
    "takes over though the fence says no": Mutant(
        Setup(**LOCK, standby=standby(Row(S.FENCING, SE.NOT_FENCED, None, S.RUNNING, (SA.TAKE_OVER,)))),
        "two may release",
    ),
    "takes the lease by the other's clock": Mutant(
        Setup("lease", 1, 1, switches=0, patience=2), "two may release"
    ),
    "does not look at its clock": Mutant(
        Setup("lease", 1, 1, switches=0, active=LooksAtNoClock), "released after the end of the lease"
    ),
    "acknowledges while it fences": Mutant(
        Setup(
            **LOCK,
            standby=standby(
                Row(S.FOLLOWING, SE.SILENT, None, S.FENCING, (SA.RUN_FENCE,)),
                Row(S.FENCING, SE.EPOCH, "fits", S.FENCING, (SA.MERGE, SA.SEND_ACK)),
            ),
        ),
        "an ACK after the decision",
    ),
    "tells its tip while it fences": Mutant(
        Setup(**LOCK, standby=standby(Row(S.FENCING, SE.LINKED, None, S.FENCING, (SA.SEND_HELLO,)))),
        "a tip is told after the decision",
    ),
    "tells its tip when it runs": Mutant(
        Setup(
            "liar",
            2,
            1,
            standby_crashes=0,
            standby=standby(Row(S.RUNNING, SE.LINKED, None, S.RUNNING, (SA.SEND_HELLO,))),
        ),
        "a tip is told after the decision",
    ),
    "goes on from a tip that it does not know": Mutant(
        Setup("lock", 3, 0, 0, 1, disk=True, switches=0, active=FollowsAnyTip),
        "merged into memory that it does not follow",
    ),
    "goes on after TAKEN": Mutant(
        Setup("liar", 2, 1, standby_crashes=0, active=active(Row(A.SEEKING, AE.STAND_IN, None, A.SEEKING))),
        "goes on after TAKEN",
    ),
    "sends GO before READY": Mutant(
        Setup(
            **LOCK,
            active=active(
                Row(
                    A.HANDING,
                    AE.TAKEN,
                    "final",
                    A.RESIGNED,
                    (AA.SEND_END, AA.SEND_FINAL, AA.RESIGN, AA.SEND_GO),
                )
            ),
        ),
        "resigns before the standby has all",
    ),
    "sends GO and keeps its fence": Mutant(
        Setup(**LOCK, active=active(Row(A.HANDING, AE.READY, "ready", A.RESIGNED, (AA.SEND_GO,)))),
        "GO before the fence is given up",
    ),
    "takes its guest back after GO": Mutant(
        Setup(
            **LOCK,
            active=active(Row(A.RESIGNED, AE.UNLINKED, None, A.SEEKING, (AA.TAKE_BACK, AA.TAKE_GUEST_BACK))),
        ),
        "runs again after the active has resigned",
    ),
    "says BYE while output is held": Mutant(
        Setup(**LOCK, ends=True, active=active(is_settled=yes)), "BYE while output is held"
    ),
    "takes over a guest that has ended": Mutant(
        Setup(**LOCK, ends=True, standby=standby(AFTER_BYE)), "a guest that has ended"
    ),
    "takes over from what its disk has": Mutant(
        Setup(**LOCK, disk=True, standby=TrustsItsDisk), "before what was released"
    ),
    "lets output out after it has resigned": Mutant(
        Setup(**LOCK, keeps_output=True), "lets output out after the takeover"
    ),
    "takes output for released that is not": Mutant(
        Setup(**LOCK, standby=CountsTooMuch), "is missing outside"
    ),
    "believes a command that lies": Mutant(Setup("liar", 2, 1, 0, 1, switches=0), "is seen with two values"),
    "takes any session for its own": Mutant(
        Setup(**LOCK, strangers=1, standby=standby(is_foreign=no)), "another session is not refused"
    ),
    "an heir holds nothing": Mutant(
        Setup(**LOCK, heir=1, active=active(Row(A.GREETED, AE.TAKEN, "follows", A.GREETED, (AA.SEND_END,)))),
        "before what was released",
    ),
    "an heir holds when its epoch is acknowledged": Mutant(
        Setup(
            **LOCK,
            heir=1,
            active=active(
                Row(A.GREETED, AE.TAKEN, "follows", A.GREETED, (AA.SEND_END,)),
                Row(A.GREETED, AE.ACKED, "sent", A.FOLLOWED, (AA.HOLD, AA.RELEASE)),
            ),
        ),
        "before what was released",
    ),
    "an heir lets output out when its link has ended": Mutant(
        Setup(
            **LOCK,
            heir=1,
            active=active(Row(A.GREETED, AE.UNLINKED, None, A.SEEKING, (AA.TAKE_BACK, AA.LET_OUT))),
        ),
        "before what was released",
    ),
    "an heir lets output out whatever its standby has": Mutant(
        Setup("pidfd", 2, 1, 1, 0, heir=1, active=active(is_known=no, is_anew=yes)),
        "before what was released",
    ),
    "an heir lets output out whoever is named": Mutant(
        Setup("lease", 1, 1, 0, 0, switches=0, heir=1, strangers=1, lease=1, patience=3, lets_out=True),
        "before what was released",
        slow=True,
    ),
    "an heir lets output out while its base is under way": Mutant(
        Setup(**LOCK, heir=1, windows=1, lets_out=True), "before what was released"
    ),
    "takes over from before the takeover": Mutant(
        Setup("pidfd", 1, 1, 1, 0, heir=1, old=True, standby=standby(is_newer=no, is_foreign=no)),
        "before what was released",
    ),
    "takes a stale active for its own": Mutant(
        Setup(**LOCK, heir=1, old=True, strangers=1, standby=standby(is_stale=no)), "is not refused"
    ),
    "takes over with nothing": Mutant(
        Setup("pidfd", 2, 1, standby=standby(Row(S.EMPTY, SE.ACTIVE_DEAD, None, S.RUNNING, (SA.TAKE_OVER,)))),
        "a takeover without an epoch",
    ),
    "sends and merges epochs that do not follow": Mutant(
        Setup("none", 3, 1, 0, 0, windows=1, active=active(is_follows=yes), standby=standby(is_fits=yes)),
        "merged into memory that it does not follow",
    ),
    "does not take back what was under way": Mutant(
        Setup(
            "none",
            3,
            1,
            0,
            0,
            switches=0,
            active=active(
                Row(A.FOLLOWED, AE.UNLINKED, None, A.SEEKING),
                Row(A.FOLLOWED, AE.SILENT, None, A.SEEKING, (AA.CLOSE,)),
            ),
        ),
        stuck="goes on",
    ),
    "leaves its guest standing": Mutant(
        Setup(**LOCK, active=active(Row(A.HANDING, AE.UNLINKED, None, A.SEEKING, (AA.TAKE_BACK,)))),
        stuck="goes on",
    ),
    "does not say FINAL again": Mutant(
        Setup("none", 2, 1, active=active(Row(A.RESIGNED, AE.LINKED, "stands", A.RESIGNED))),
        stuck="hands over",
    ),
    "asks the fence once": Mutant(
        Setup(**LOCK, standby=standby(Row(S.FENCING, SE.NOT_FENCED, None, S.FENCING))), stuck="takes over"
    ),
}
