"""What interprets the table: events in, actions out. No I/O, and the time is passed in.

An edge (active.py, standby.py) has one machine. It tells it what happens, one event after the other, and
carries out the actions that it gets, in their order and before the next event:

    for do in machine.on(ActiveEvent.ACKED, now, digest=meta["digest"]):
        ...

What an event is told with:

| event | |
|---|---|
| active: LINKED, ACKED, READY | `digest`: of the standby's tip ("" for none), of the message |
| active: TAKEN | `epoch`, and `final` if the guest stands since then, or has ended |
| standby: LINKED | `run`, `term`: of the active's hello |
| standby: EPOCH | `epoch` |
| standby: FINAL | `digest` |

`heard` is called for every frame that comes, and when the active has connected. `noted` is called at the
standby where a frame says what was released, before its event. `tick` is called at `silent_at` and at
`lease_until`. A machine never raises. An event without a row gives one REFUSE.

Each link's end is told as UNLINKED, also where we have closed it. A second link at the standby is told as
LINKED when its hello is there: if the answer is REFUSE it is closed, else the first one is, and from then on
nothing of that one is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple

from checkpoint.replication.protocol.table import Action, Event, Row, State

Marks = tuple[int, ...]
"""How much of each output of a guest: of its serial port in bytes, of its network device in packets."""


class Epoch(NamedTuple):
    """An epoch as the protocol knows it.

    Attributes:
        parent: digest of the epoch that it is to be merged into; "" for a base.
        output: what the guest had sent before the epoch was taken, since its start.
    """

    number: int
    digest: str
    parent: str = ""
    output: Marks = ()


class Told(NamedTuple):
    """What an event comes with; see the head of this file."""

    digest: str = ""
    epoch: Epoch | None = None
    final: bool = False
    run: str = ""
    term: int = 0


class Do(NamedTuple, Generic[Action]):
    """An action to carry out.

    Attributes:
        epoch: FOLLOW, SEND_HELLO: the tip, None for none. SEND_END, RELEASE, SEND_FINAL, MERGE, SEND_ACK,
            SEND_READY, TAKE_OVER: that epoch.
        reason: REFUSE, STOP, SAY_MAY_NOT: why, for people.
    """

    action: Action
    epoch: Epoch | None = None
    reason: str = ""


def _always(told: Told) -> bool:
    return True


class Machine(Generic[State, Event, Action]):
    """What both roles have in common. Its attributes are values: `copy.copy` of a machine is another one.

    Attributes:
        state: of the table; `silent_at`: when `tick` is due. The end of a link does not put it off.
        deadline: seconds without a frame after which the other side counts as silent.
    """

    rows: tuple[Row[State, Event, Action], ...] = ()
    _rows: ClassVar[dict[Any, list[Row[Any, Any, Any]]]]
    """By state and event."""
    silence: Event
    loss: Event
    refusal: Action
    state: State

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._rows = {}
        for row in cls.rows:
            cls._rows.setdefault((row.state, row.event), []).append(row)

    def __init__(self, state: State, deadline: float, now: float) -> None:
        self.state = state
        self.deadline = deadline
        self.silent_at = now + deadline

    def on(
        self,
        event: Event,
        now: float,
        *,
        digest: str = "",
        epoch: Epoch | None = None,
        final: bool = False,
        run: str = "",
        term: int = 0,
    ) -> list[Do[Action]]:
        """Take an event; returns what is to be done. `now`: seconds of a clock that never goes back."""
        told = Told(digest, epoch, final, run, term)
        event = self._at(event, now)
        row = self._row(event, told)
        if row is None:
            reason = f"{event.name} is not expected while {self.state.name}"
            return [Do(self.refusal, None, reason)]
        if event is self.silence or (row.next is not self.state and event is not self.loss):
            self.silent_at = now + self.deadline
        self.state = row.next
        return [self._do(action, event, told) for action in row.actions]

    def heard(self, now: float) -> None:
        """Note that a frame came."""
        self.silent_at = now + self.deadline

    def tick(self, now: float) -> list[Do[Action]]:
        """Take SILENT if it is time; returns what is to be done."""
        return self.on(self.silence, now) if now >= self.silent_at else []

    def _at(self, event: Event, now: float) -> Event:
        """What counts as having happened."""
        return event

    def _row(self, event: Event, told: Told) -> Row[State, Event, Action] | None:
        for row in self._rows.get((self.state, event), ()):
            guard: Callable[[Told], bool] = getattr(self, f"is_{row.guard}") if row.guard else _always
            if guard(told):
                return row
        return None

    def _do(self, action: Action, event: Event, told: Told) -> Do[Action]:
        """What an action changes in what we know, and with what it is carried out."""
        raise NotImplementedError
