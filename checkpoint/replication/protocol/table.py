"""The protocol of an active and its standby, as data: what each does, in each state, when something happens.

Nothing here runs. `peer.py` interprets the rows; the picture in docs/fault-tolerance.md is drawn from them,
and tests/unit/test_protocol_explored.py takes each. The values of the enums say what their names mean.

A row that has a guard holds if the guard of that name (`is_NAME` of the machine) says so. Of several rows for
one state and event the first that holds counts. **What has no row is a mistake**: the state stays, the link
is refused with a reason, and its end is told as `UNLINKED` like any other.

What to look for (and what tests/unit/test_protocol.py looks for):

1. `RELEASE` stands only where the standby says that it has the epoch: at `ACKED`, and at `LINKED` by its tip.
2. `SEND_ACK` stands only behind `MERGE`, and both behind the guard `fits`.
3. `FENCING`, `RUNNING` and `OVER` have no row with `SEND_ACK`, nor with `SEND_HELLO`: a hello tells the tip,
   as an acknowledgement does. `TAKE_OVER` stands only at `GO`, `FENCED` and `ACTIVE_DEAD`.
4. `TAKE_OVER` has the last whole epoch; what the active may not have released is released first.
5. `TAKE_BACK` stands at each end of a link; `FOLLOW` only behind the guard `known`, else there is a `REBASE`.
6. `STAND_IN` and `FENCE_LOST` lead to `ENDED` with `STOP`.
7. `RESIGN` comes before `SEND_GO`, and nothing leads from `RESIGNED` to a state in which the guest runs.
8. `HOLD` comes before the first `SEND_END`: from then on a standby may come to run the guest from that epoch.
   Before the first `ACKED`, `LET_OUT` is its opposite, behind `REBASE`, where a standby has nothing of ours.
   Who has heard of a later term forgets its tip (`FORGET`), which is from before that takeover.
"""

from __future__ import annotations

from enum import Enum
from typing import Generic, NamedTuple, TypeVar


class ActiveState(Enum):
    SEEKING = "no standby is linked; the guest runs, its output is held, unless it is unprotected"
    GREETED = "linked; a base is due or under way"
    FOLLOWED = "the standby has a whole epoch and is sent the next ones"
    HANDING = "the guest stands since its last epoch, for a switchover"
    RESIGNED = "the fence is given up: the guest is the standby's, and never runs here again"
    ENDED = "nothing is released any more"


class ActiveEvent(Enum):
    LINKED = "the standby's hello, with its tip"
    UNLINKED = "the link has ended, or could not be made; also where we have closed it"
    SILENT = "nothing was heard on the link for the deadline"
    TAKEN = "an epoch was taken; told before its END is sent"
    ACKED = "ACK: the standby has an epoch whole, and so all before it"
    SWITCHOVER = "a user wants the standby to go on, here or by ASK"
    READY = "READY: the standby would take over from the final epoch"
    STAND_IN = "TAKEN: the standby runs the guest"
    FENCE_LOST = "the lock or the lease is not ours any more, or may not be from now on"
    GUEST_ENDED = "the guest, or the session, has ended; told again after each ACK, until we are ENDED"


class ActiveAction(Enum):
    HOLD = "hold what the guest has sent since the epoch was taken, if it was unprotected so far"
    LET_OUT = "hold nothing any more: nobody may take over from what was sent, it is unprotected again"
    FOLLOW = "the next epoch is the child of the standby's tip"
    REBASE = "the next epoch is a base"
    SEND_END = "send END of the epoch: it is whole"
    RELEASE = "let out all output up to the epoch"
    TAKE_BACK = "drop the epochs that are not acknowledged: what they have is pending again"
    CLOSE = "close the link"
    HAND_OVER = "take the last epoch and leave the guest standing"
    SEND_FINAL = "send FINAL"
    TAKE_GUEST_BACK = "let the guest that stands run again"
    RESIGN = "stop all output for good, then give up the lock or the lease"
    SEND_GO = "send GO, with what has been released"
    SEND_BYE = "when all output has left, send BYE: there is nothing to take over"
    STOP = "stop the guest and all output for good, and end"
    SAY_MAY_NOT = "tell the user that there can be no switchover now"
    REFUSE = "send REFUSE with the reason, and close the link that the event came from"


class StandbyState(Enum):
    EMPTY = "no epoch has become whole since the start"
    FOLLOWING = "linked, with a whole epoch"
    LOST = "with a whole epoch, and without a link"
    FENCING = (
        "silence was too long: the fence is asked to see to it that the active releases nothing any more"
    )
    RUNNING = "it runs the guest"
    OVER = "the guest has ended: there is nothing to take over"


class StandbyEvent(Enum):
    LINKED = "the active's hello; unless it is refused, its link replaces one that there is"
    UNLINKED = "the link has ended; also where we have closed it"
    SILENT = "nothing was heard for the deadline, linked or not"
    EPOCH = "END: an epoch is here and verified"
    BAD = "an epoch, or a frame, is damaged"
    FINAL = "FINAL: the guest stands since that epoch"
    GO = "GO: the active has resigned"
    BYE = "BYE: there is nothing to take over"
    SWITCHOVER = "a user wants this standby to go on"
    FENCED = "the fence says that the active can release nothing any more"
    NOT_FENCED = "the fence cannot say so; without a fence this is the answer"
    ACTIVE_DEAD = "the active's process has ended, by its pidfd; told behind all that had come on the link"


class StandbyAction(Enum):
    FORGET = "the guest has gone on elsewhere: what is here is no epoch to take over from any more"
    SEND_HELLO = "send HELLO, with the tip"
    DROP_PARTIAL = "drop the epoch that is under way"
    MERGE = "merge the epoch into the memory; if that fails, end"
    SEND_ACK = "send ACK"
    SEND_READY = "send READY"
    SEND_ASK = "send ASK"
    CLOSE = "close the link"
    RUN_FENCE = "ask the fence; its one answer is FENCED or NOT_FENCED"
    TAKE_OVER = "run the guest from the epoch, and first release what the active may not have released"
    SEND_TAKEN = "send TAKEN"
    SAY_MAY_NOT = "tell the user that this standby may not, or cannot, take over"
    REFUSE = "send REFUSE with the reason, and close the link that the event came from"


State = TypeVar("State", bound=Enum)
Event = TypeVar("Event", bound=Enum)
Action = TypeVar("Action", bound=Enum)


class Row(NamedTuple, Generic[State, Event, Action]):
    """In a state, at an event, if the guard says so: the next state, and what is done, in this order."""

    state: State
    event: Event
    guard: str | None
    next: State
    actions: tuple[Action, ...] = ()


def _active() -> tuple[Row[ActiveState, ActiveEvent, ActiveAction], ...]:
    s, e, a = ActiveState, ActiveEvent, ActiveAction
    return (
        Row(s.SEEKING, e.LINKED, "known", s.FOLLOWED, (a.FOLLOW, a.RELEASE)),
        Row(s.SEEKING, e.LINKED, "anew", s.GREETED, (a.REBASE, a.LET_OUT)),
        Row(s.SEEKING, e.LINKED, None, s.GREETED, (a.REBASE,)),
        Row(s.SEEKING, e.UNLINKED, None, s.SEEKING),
        Row(s.SEEKING, e.SILENT, None, s.SEEKING, (a.CLOSE,)),
        Row(s.SEEKING, e.TAKEN, None, s.SEEKING, (a.TAKE_BACK,)),
        Row(s.SEEKING, e.SWITCHOVER, None, s.SEEKING, (a.SAY_MAY_NOT,)),
        Row(s.SEEKING, e.GUEST_ENDED, "settled", s.ENDED),
        Row(s.SEEKING, e.GUEST_ENDED, None, s.SEEKING),
        Row(s.SEEKING, e.STAND_IN, None, s.ENDED, (a.STOP,)),
        Row(s.SEEKING, e.FENCE_LOST, None, s.ENDED, (a.STOP,)),
        Row(s.GREETED, e.UNLINKED, None, s.SEEKING, (a.TAKE_BACK,)),
        Row(s.GREETED, e.SILENT, None, s.SEEKING, (a.CLOSE, a.TAKE_BACK)),
        Row(s.GREETED, e.TAKEN, "follows", s.GREETED, (a.HOLD, a.SEND_END)),
        Row(s.GREETED, e.TAKEN, None, s.GREETED, (a.TAKE_BACK,)),
        Row(s.GREETED, e.ACKED, "sent", s.FOLLOWED, (a.RELEASE,)),
        Row(s.GREETED, e.SWITCHOVER, None, s.GREETED, (a.SAY_MAY_NOT,)),
        Row(s.GREETED, e.GUEST_ENDED, "settled", s.ENDED, (a.SEND_BYE,)),
        Row(s.GREETED, e.GUEST_ENDED, None, s.GREETED),
        Row(s.GREETED, e.STAND_IN, None, s.ENDED, (a.STOP,)),
        Row(s.GREETED, e.FENCE_LOST, None, s.ENDED, (a.STOP,)),
        Row(s.FOLLOWED, e.UNLINKED, None, s.SEEKING, (a.TAKE_BACK,)),
        Row(s.FOLLOWED, e.SILENT, None, s.SEEKING, (a.CLOSE, a.TAKE_BACK)),
        Row(s.FOLLOWED, e.TAKEN, "follows", s.FOLLOWED, (a.SEND_END,)),
        Row(s.FOLLOWED, e.TAKEN, None, s.FOLLOWED, (a.TAKE_BACK,)),
        Row(s.FOLLOWED, e.ACKED, "sent", s.FOLLOWED, (a.RELEASE,)),
        Row(s.FOLLOWED, e.SWITCHOVER, None, s.HANDING, (a.HAND_OVER,)),
        Row(s.FOLLOWED, e.GUEST_ENDED, "settled", s.ENDED, (a.SEND_BYE,)),
        Row(s.FOLLOWED, e.GUEST_ENDED, None, s.FOLLOWED),
        Row(s.FOLLOWED, e.STAND_IN, None, s.ENDED, (a.STOP,)),
        Row(s.FOLLOWED, e.FENCE_LOST, None, s.ENDED, (a.STOP,)),
        Row(s.HANDING, e.UNLINKED, None, s.SEEKING, (a.TAKE_BACK, a.TAKE_GUEST_BACK)),
        Row(s.HANDING, e.SILENT, None, s.SEEKING, (a.CLOSE, a.TAKE_BACK, a.TAKE_GUEST_BACK)),
        Row(s.HANDING, e.TAKEN, "final", s.HANDING, (a.SEND_END, a.SEND_FINAL)),
        Row(s.HANDING, e.TAKEN, "follows", s.HANDING, (a.SEND_END,)),
        Row(s.HANDING, e.ACKED, "sent", s.HANDING, (a.RELEASE,)),
        Row(s.HANDING, e.SWITCHOVER, None, s.HANDING),
        Row(s.HANDING, e.GUEST_ENDED, None, s.HANDING),
        Row(s.HANDING, e.READY, "ready", s.RESIGNED, (a.RESIGN, a.SEND_GO)),
        Row(s.HANDING, e.STAND_IN, None, s.ENDED, (a.STOP,)),
        Row(s.HANDING, e.FENCE_LOST, None, s.ENDED, (a.STOP,)),
        Row(s.RESIGNED, e.LINKED, "stands", s.RESIGNED, (a.SEND_FINAL,)),
        Row(s.RESIGNED, e.UNLINKED, None, s.RESIGNED),
        Row(s.RESIGNED, e.SILENT, None, s.RESIGNED, (a.CLOSE,)),
        Row(s.RESIGNED, e.READY, "ready", s.RESIGNED, (a.SEND_GO,)),
        Row(s.RESIGNED, e.SWITCHOVER, None, s.RESIGNED),
        Row(s.RESIGNED, e.STAND_IN, None, s.ENDED, (a.STOP,)),
    )


def _standby() -> tuple[Row[StandbyState, StandbyEvent, StandbyAction], ...]:
    s, e, a = StandbyState, StandbyEvent, StandbyAction
    return (
        Row(s.EMPTY, e.LINKED, "stale", s.EMPTY, (a.REFUSE,)),
        Row(s.EMPTY, e.LINKED, None, s.EMPTY, (a.DROP_PARTIAL, a.SEND_HELLO)),
        Row(s.EMPTY, e.UNLINKED, None, s.EMPTY, (a.DROP_PARTIAL,)),
        Row(s.EMPTY, e.SILENT, None, s.EMPTY, (a.CLOSE, a.DROP_PARTIAL)),
        Row(s.EMPTY, e.EPOCH, "fits", s.FOLLOWING, (a.MERGE, a.SEND_ACK)),
        Row(s.EMPTY, e.BAD, None, s.EMPTY, (a.DROP_PARTIAL, a.REFUSE)),
        Row(s.EMPTY, e.BYE, None, s.OVER),
        Row(s.EMPTY, e.SWITCHOVER, None, s.EMPTY, (a.SAY_MAY_NOT,)),
        Row(s.EMPTY, e.ACTIVE_DEAD, None, s.EMPTY, (a.DROP_PARTIAL, a.SAY_MAY_NOT)),
        Row(s.FOLLOWING, e.LINKED, "newer", s.EMPTY, (a.DROP_PARTIAL, a.FORGET, a.SEND_HELLO)),
        Row(s.FOLLOWING, e.LINKED, "foreign", s.FOLLOWING, (a.REFUSE,)),
        Row(s.FOLLOWING, e.LINKED, None, s.FOLLOWING, (a.DROP_PARTIAL, a.SEND_HELLO)),
        Row(s.FOLLOWING, e.UNLINKED, None, s.LOST, (a.DROP_PARTIAL,)),
        Row(s.FOLLOWING, e.SILENT, None, s.FENCING, (a.CLOSE, a.DROP_PARTIAL, a.RUN_FENCE)),
        Row(s.FOLLOWING, e.EPOCH, "fits", s.FOLLOWING, (a.MERGE, a.SEND_ACK)),
        Row(s.FOLLOWING, e.BAD, None, s.FOLLOWING, (a.DROP_PARTIAL, a.REFUSE)),
        Row(s.FOLLOWING, e.FINAL, "whole", s.FOLLOWING, (a.SEND_READY,)),
        Row(s.FOLLOWING, e.GO, "ready", s.RUNNING, (a.TAKE_OVER, a.SEND_TAKEN)),
        Row(s.FOLLOWING, e.BYE, None, s.OVER),
        Row(s.FOLLOWING, e.SWITCHOVER, None, s.FOLLOWING, (a.SEND_ASK,)),
        Row(s.FOLLOWING, e.ACTIVE_DEAD, None, s.RUNNING, (a.DROP_PARTIAL, a.TAKE_OVER)),
        Row(s.LOST, e.LINKED, "newer", s.EMPTY, (a.FORGET, a.SEND_HELLO)),
        Row(s.LOST, e.LINKED, "foreign", s.LOST, (a.REFUSE,)),
        Row(s.LOST, e.LINKED, None, s.FOLLOWING, (a.SEND_HELLO,)),
        Row(s.LOST, e.UNLINKED, None, s.LOST),
        Row(s.LOST, e.SILENT, None, s.FENCING, (a.RUN_FENCE,)),
        Row(s.LOST, e.SWITCHOVER, None, s.LOST, (a.SAY_MAY_NOT,)),
        Row(s.LOST, e.ACTIVE_DEAD, None, s.RUNNING, (a.TAKE_OVER,)),
        Row(s.FENCING, e.LINKED, None, s.FENCING, (a.REFUSE,)),
        Row(s.FENCING, e.UNLINKED, None, s.FENCING),
        Row(s.FENCING, e.SILENT, None, s.FENCING),
        Row(s.FENCING, e.SWITCHOVER, None, s.FENCING),
        Row(s.FENCING, e.FENCED, None, s.RUNNING, (a.TAKE_OVER,)),
        Row(s.FENCING, e.NOT_FENCED, None, s.LOST, (a.SAY_MAY_NOT,)),
        Row(s.FENCING, e.ACTIVE_DEAD, None, s.RUNNING, (a.TAKE_OVER,)),
        Row(s.RUNNING, e.LINKED, "foreign", s.RUNNING, (a.REFUSE,)),
        Row(s.RUNNING, e.LINKED, None, s.RUNNING, (a.SEND_TAKEN,)),
        Row(s.RUNNING, e.UNLINKED, None, s.RUNNING),
        Row(s.RUNNING, e.SILENT, None, s.RUNNING),
        Row(s.RUNNING, e.SWITCHOVER, None, s.RUNNING),
        Row(s.RUNNING, e.FENCED, None, s.RUNNING),
        Row(s.RUNNING, e.NOT_FENCED, None, s.RUNNING),
        Row(s.RUNNING, e.ACTIVE_DEAD, None, s.RUNNING),
        Row(s.OVER, e.UNLINKED, None, s.OVER),
        Row(s.OVER, e.SILENT, None, s.OVER),
        Row(s.OVER, e.ACTIVE_DEAD, None, s.OVER),
    )


ACTIVE, STANDBY = _active(), _standby()
