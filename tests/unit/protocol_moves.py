"""What can happen next in a world of `protocol_world.py`: each move is one event of one side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import inf

from checkpoint.replication.protocol.machine import Epoch
from checkpoint.replication.protocol.table import (
    ActiveEvent,
    ActiveState,
    StandbyAction,
    StandbyEvent,
    StandbyState,
)
from tests.unit.protocol_lease import of_the_lease
from tests.unit.protocol_world import HELD, World

A, S = ActiveState, StandbyState
Move = tuple[str, Callable[[World], None]]


def moves(w: World) -> Iterator[Move]:
    if w.active:
        yield from _of_the_active(w)
    yield from _of_the_standby(w)
    yield from _of_the_link(w)
    if w.setup.fence == "lease":
        yield from of_the_lease(w)


# -- the active -----------------------------------------------------------------------------------


def _of_the_active(w: World) -> Iterator[Move]:
    assert w.active
    state, sent = w.active.state, w.active.sent
    if state is A.ENDED:
        yield "the active exits", _end_active
        return
    if w.window:
        yield "the active has taken its epoch", World.told_window
    elif w.made < w.setup.epochs:
        if state is A.HANDING and w.last_due:
            yield "the active takes its last epoch", partial(World.take, final=True)
        due = w.active.final is None if w.ended else len(sent) < HELD
        if due and not w.stands and state in (A.GREETED, A.FOLLOWED):
            yield "the active takes an epoch", partial(World.take, final=w.ended)
            if w.budget[3]:
                yield "the active begins an epoch", partial(World.take, final=w.ended, slow=True)
            if w.setup.ends and not w.ended:
                yield "the guest ends", partial(World.take, final=True, ended=True)
    if w.permitted > w.let_out:
        yield "the active lets output out", World.let_all_out
    if w.active.unprotected and (not w.window or w.setup.lets_out) and w.active.lease_until > 0:
        yield from _of_the_heir(w)
    all_out = not w.active.unprotected or w.out == w.let_out
    if (
        w.setup.ends
        and (w.ended or not w.setup.holds)
        and state is not A.RESIGNED
        and not w.window
        and all_out
    ):
        yield "the active tells of the guest's end", partial(World.tell_active, event=ActiveEvent.GUEST_ENDED)
    if w.budget[4] and not w.ended:
        yield "a user asks the active", _ask_active
    if w.budget[1]:
        yield "the active dies", _kill_active


def _of_the_heir(w: World) -> Iterator[Move]:
    if w.unheld and not w.ended:
        yield "the guest sends, and nothing is held", World.send_unheld
    if w.out > w.let_out:
        yield "what was held for an epoch is let out", partial(World.send_unheld, more=0)
    if w.setup.ends and not w.ended and w.out == w.let_out:
        yield "the guest ends, and nothing is held", _end_guest


def _end_guest(w: World) -> None:
    w.ended = True


def _ask_active(w: World) -> None:
    w.spend(4)
    w.tell_active(ActiveEvent.SWITCHOVER)


def _end_active(w: World) -> None:
    """Its process ends: by itself, or by kill -9."""
    w.active, w.active_open, w.window, w.permitted = None, False, None, w.let_out
    if w.setup.fence != "lease" and w.holder == "A":
        w.holder = ""


def _kill_active(w: World) -> None:
    w.spend(1)
    _end_active(w)


# -- the standby ----------------------------------------------------------------------------------


def _of_the_standby(w: World) -> Iterator[Move]:
    state = w.standby.state
    if w.fencing:
        yield from _answers(w)
    if w.setup.fence == "pidfd" and not w.active and w.is_named and not (w.standby_open and w.down):
        yield "the standby sees the active's end", partial(World.tell_standby, event=StandbyEvent.ACTIVE_DEAD)
    if state in (S.LOST, S.FENCING, S.RUNNING, S.OVER) and not w.standby_open:
        yield "the standby has heard nothing", partial(World.tell_standby, event=StandbyEvent.SILENT)
    if state is S.RUNNING and w.went_on == w.memory and not (w.ended and w.memory == w.out):
        yield "the standby's guest goes on", _go_on
    if w.budget[4]:
        yield "a user asks the standby", _ask_standby
    if w.budget[5] and w.standby.run:
        yield "another active's hello", _stranger
    if w.budget[2]:
        yield "the standby restarts, empty", partial(_restart, tip=None)
        if w.setup.disk and w.standby.tip:
            yield "the standby restarts, with its last epoch", partial(_restart, tip=w.standby.tip)
            if w.older:
                yield "the standby restarts, with the epoch before", partial(_restart, tip=w.older)


def _answers(w: World) -> Iterator[Move]:
    fence = w.setup.fence
    gained = {
        "none": False,
        "lock": w.holder == "" and w.is_named,
        "command": True,
        "pidfd": w.active is None and w.is_named,
        "lease": w.is_named and (w.holder == "" or (w.observed and w.waited >= w.setup.patience)),
        "liar": True,
    }[fence]
    if gained:
        yield "the fence holds", partial(_answer, event=StandbyEvent.FENCED)
    if not gained or fence in ("command", "pidfd"):
        yield "the fence does not hold", partial(_answer, event=StandbyEvent.NOT_FENCED)


def _answer(w: World, event: StandbyEvent) -> None:
    w.fencing = False
    if event is StandbyEvent.FENCED:
        if w.setup.fence == "command":
            _end_active(w)
        if w.setup.fence in ("lock", "lease"):
            w.holder = "S"
    else:
        w.decided = w.ran
    w.tell_standby(event)


def _go_on(w: World) -> None:
    w.went_on += 1
    w.emit(w.went_on, "B")


def _ask_standby(w: World) -> None:
    w.spend(4)
    w.tell_standby(StandbyEvent.SWITCHOVER)


def _stranger(w: World) -> None:
    """A session of another guest comes by, on a link of its own; or of this one, from before a takeover."""
    w.spend(5)
    for told in [{"run": "another"}] * (w.standby.state is not S.EMPTY) + [{"run": "run", "term": -1}]:
        for do in w.standby.on(StandbyEvent.LINKED, 0.0, **told):  # type: ignore[arg-type]
            w.check(do.action is StandbyAction.REFUSE, "another session is not refused")


def _restart(w: World, tip: Epoch | None) -> None:
    w.spend(2)
    w.older = None
    w.standby = w.setup.standby(inf, 0.0, tip)
    w.memory, w.went_on = tip.output[0] if tip else -1, 0
    w.standby_open = w.fencing = w.decided = False
    w.holder = "" if w.holder == "S" else w.holder


# -- the link -------------------------------------------------------------------------------------


def _of_the_link(w: World) -> Iterator[Move]:
    a, s = w.active_open, w.standby_open
    if w.active and not a and w.active.state in (A.SEEKING, A.RESIGNED):
        yield "the active connects", _connect
        if w.setup.heir and w.budget[5] and w.active.state is A.SEEKING:
            yield "another standby is linked, and has nothing", _another
    if w.active and a:
        if w.up:
            yield f"to the active: {w.up[0][0]}", _up
        elif w.cut or not s:
            yield "the active's link ends", _end_up
        if w.cut or not s or w.budget[0]:
            yield "the active hears nothing", _silent_up
    if s:
        if w.down:
            yield f"to the standby: {w.down[0][0]}", _down
            if w.down[0][0] == "END" and w.budget[0]:
                yield "to the standby: END, damaged", _damaged
        elif w.cut or not a:
            yield "the standby's link ends", _end_down
        if w.cut or not a or w.budget[0]:
            yield "the standby hears nothing", _silent_down
    if (a or s) and not w.cut and w.budget[0]:
        for down in range(len(w.down) + 1):
            for up in range(len(w.up) + 1):
                yield f"the link is cut, {down} and {up} arrive", partial(_cut, down=down, up=up)


def _connect(w: World) -> None:
    w.active_open = w.standby_open = True
    w.cut, w.down, w.up = False, (("HELLO",),), ()


def _another(w: World) -> None:
    """One that says no more than that."""
    w.spend(5)
    w.active_open = w.cut = True
    w.down, w.up = (), ()
    w.tell_active(ActiveEvent.LINKED)


def _cut(w: World, down: int, up: int) -> None:
    w.spend(0)
    w.cut, w.down, w.up = True, w.down[:down], w.up[:up]


def _end_up(w: World) -> None:
    w.active_open = False
    w.tell_active(ActiveEvent.UNLINKED)


def _end_down(w: World) -> None:
    w.standby_open = False
    w.tell_standby(StandbyEvent.UNLINKED)


def _silent_up(w: World) -> None:
    if not w.cut and w.standby_open:
        w.spend(0)
    w.tell_active(ActiveEvent.SILENT)


def _silent_down(w: World) -> None:
    if not w.cut and w.active_open:
        w.spend(0)
    w.tell_standby(StandbyEvent.SILENT)


def _up(w: World) -> None:
    (kind, *rest), w.up = w.up[0], w.up[1:]
    event = {"HELLO": "LINKED", "ACK": "ACKED", "TAKEN": "STAND_IN", "ASK": "SWITCHOVER"}.get(kind, kind)
    w.told_taken = w.told_taken or kind == "TAKEN"
    w.tell_active(ActiveEvent[event], digest=rest[0] if rest else "")


def _down(w: World) -> None:
    (kind, *rest), w.down = w.down[0], w.down[1:]
    match kind:
        case "HELLO":
            w.tell_standby(StandbyEvent.LINKED, run="run", term=int(w.setup.heir > 0))
        case "END":
            epoch, since, released = rest
            w.standby.noted((released,))
            w.tell_standby(StandbyEvent.EPOCH, since, epoch=epoch)
        case "GO":
            w.standby.noted((rest[0],))
            w.tell_standby(StandbyEvent.GO)
        case _:
            w.over = w.over or kind == "BYE"
            w.tell_standby(StandbyEvent[kind], digest=rest[0] if rest else "")


def _damaged(w: World) -> None:
    w.spend(0)
    w.down = w.down[1:]
    w.tell_standby(StandbyEvent.BAD)
