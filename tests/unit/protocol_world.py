"""Two peers, what is between them and outside of them: the world that test_protocol_explored.py searches.

The machines are the real ones. The rest is a model: edges that carry out actions, links that are queues,
crashes, fences, and an outside that sees each output as (position, value). Values say who made them: "A", the
guest before a takeover, "B", the guest behind it. A position that is seen with both has two histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

from checkpoint.replication.protocol.machine import Epoch
from checkpoint.replication.protocol.peer import Active, Standby
from checkpoint.replication.protocol.table import ActiveEvent, ActiveState, StandbyEvent, StandbyState

A, S = ActiveState, StandbyState
HELD, STRICT = 2, ("none", "lock", "command", "pidfd")
OLD = Epoch(0, "old", "", (0,))


class ViolationError(Exception):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Setup:
    """What can happen, and how often.

    Attributes:
        fence: none, lock, command, pidfd, lease, or liar: a command that says so, and is wrong.
        epochs: taken in all; faults: links cut, silences and damaged epochs; crashes of each side.
        disk: a standby that restarts may have its last epoch on disk, or the one before.
        windows: epochs that were under way while the link changed.
        switches: how often a user asks, at either side. ends: the guest may end.
        holds: its output is held. strangers: sessions of other guests that come by.
        keeps_output: a mistake: RESIGN does not stop output that was released before.
        heir: the active has taken over, and is unprotected; so often the guest sends something then.
        old: the standby followed the active before it, was cut off, and has its last epoch.
        lets_out: a mistake: the heir does so while its base is under way, or whoever is named its successor.
        lease, patience: ticks of the active's clock, and of the standby's before it takes the lease.
    """

    fence: str = "lock"
    epochs: int = 3
    faults: int = 1
    active_crashes: int = 1
    standby_crashes: int = 1
    disk: bool = False
    windows: int = 0
    switches: int = 1
    ends: bool = False
    holds: bool = True
    strangers: int = 0
    lease: int = 2
    patience: int = 4
    keeps_output: bool = False
    heir: int = 0
    old: bool = False
    lets_out: bool = False
    active: type[Active] = Active
    standby: type[Standby] = Standby


T = TypeVar("T")


def _copy(of: T) -> T:
    """Attribute by attribute; `copy.copy` takes three times as long."""
    other = object.__new__(type(of))
    other.__dict__.update(of.__dict__)
    return other


class World:
    """A state. All attributes are values, but for the two machines, which are copied before they change."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.active: Active | None = setup.active(inf, holds=setup.holds, is_heir=bool(setup.heir))
        self.standby = setup.standby(inf)
        self.active_open = self.standby_open = self.cut = False
        self.down: tuple[Any, ...] = ()
        self.up: tuple[Any, ...] = ()
        # The active's edge: epochs taken, output that the guest made, what is under way.
        self.made = self.out = self.safe = self.let_out = self.permitted = 0
        self.stands = self.last_due = self.ended = self.stopped = False
        self.window: tuple[Epoch, int, bool] | None = None
        # The standby's edge: what its memory is; the next output when it runs.
        self.memory, self.went_on = -1, 0
        self.older: Epoch | None = None
        self.fencing = self.decided = False
        # What has happened.
        self.whole: frozenset[str] = frozenset()
        self.seen = ""
        self.ran = self.resigned = self.told_taken = self.over = False
        self.budget: tuple[int, ...] = (
            setup.faults,
            setup.active_crashes,
            setup.standby_crashes,
            setup.windows,
            setup.switches,
            setup.strangers,
        )
        # The lock or the lease. Of a lease: whether the standby has seen its renewal, and for how long.
        self.holder = "A"
        self.observed, self.waited, self.hasty = False, 0, False
        self.renewal: int | None = None
        if setup.fence == "lease":
            self.active.renewed(setup.lease)
        # Whether the fence says yes to this standby's chain; what an heir's guest may send.
        self.is_named, self.unheld = not setup.heir, setup.heir
        if setup.heir:
            self.out, self.safe, self.let_out, self.permitted, self.seen = 1, 1, 1, 1, "A"
        if setup.old:
            self.standby.state, self.standby.run, self.standby.tip = S.FOLLOWING, "run", OLD
            self.memory, self.standby_open = 0, True

    def key(self) -> tuple[Any, ...]:
        values = list(vars(self).values())
        values[0:3] = [
            tuple(vars(self.active).values()) if self.active else None,
            tuple(vars(self.standby).values()),
        ]
        return tuple(values)

    def apart(self) -> World:
        """One that may change."""
        other = _copy(self)
        other.active, other.standby = self.active and _copy(self.active), _copy(self.standby)
        return other

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise ViolationError(what)

    # -- the active's edge ------------------------------------------------------------------------

    def tell_active(self, event: ActiveEvent, **told: Any) -> None:
        if not self.active:
            return
        closes = False
        for do in self.active.on(event, 0.0, **told):
            name = do.action.name
            if name in ("CLOSE", "REFUSE"):
                closes = True
            elif name == "SEND_END":
                assert self.window and do.epoch
                self.send_down("END", do.epoch, self.window[1], self.let_out)
            elif name == "RELEASE":
                self._release(do.epoch)
            elif name == "REBASE":  # the lock's file names another generation
                self.is_named &= not (self.setup.heir and self.setup.fence == "lock")
            elif name == "LET_OUT" and self.setup.fence == "lease":  # the edge looks at who may be named
                self.active.unprotected = not self.is_named or self.setup.lets_out
            elif name == "HAND_OVER":
                self.stands = self.last_due = True
            elif name == "SEND_FINAL":
                self.send_down("FINAL", do.epoch.digest if do.epoch else "")
            elif name == "TAKE_GUEST_BACK":
                self.check(not self.resigned, "the guest runs again after the active has resigned")
                self.stands = self.last_due = False
            elif name == "RESIGN":
                self._resign()
            elif name == "SEND_GO":
                self.check(self.resigned, "GO before the fence is given up")
                self.send_down("GO", self.let_out)
            elif name == "SEND_BYE":
                self.check(self.permitted == self.out or not self.setup.holds, "BYE while output is held")
                self.let_all_out()
                self.send_down("BYE")
            elif name == "STOP":
                self.stopped, self.permitted = True, self.let_out
        if closes and self.active_open:
            self.active_open = False
            self.tell_active(ActiveEvent.UNLINKED)

    def _release(self, epoch: Epoch | None) -> None:
        assert epoch
        self.check(epoch.digest in self.whole, "output is released that no standby has acknowledged")
        on_time = self.active is None or self.active.lease_until > 0
        self.check(on_time, "output is released after the end of the lease")
        self.is_named |= self.setup.fence == "lease"
        self.permitted = max(self.permitted, epoch.output[0])
        self.safe = max(self.safe, epoch.output[0])

    def _resign(self) -> None:
        assert self.active and self.active.final
        self.check(self.active.final.digest in self.whole, "the active resigns before the standby has all")
        self.resigned = True
        self.permitted = self.permitted if self.setup.keeps_output else self.let_out
        self.holder = "" if self.holder == "A" else self.holder

    def take(self, final: bool, ended: bool = False, slow: bool = False) -> None:
        """A window: the guest has made one more output since the last one."""
        assert self.active
        self.made += 1
        self.out += not self.ended
        self.ended = self.ended or ended
        parent = self.active.parent
        since = self.active.sent[-1].output[0] if self.active.sent else self.safe
        epoch = Epoch(0, str(self.made), parent.digest if parent else "", (self.out,))
        self.window = (epoch, since if parent else -1, final)
        self.last_due = self.last_due and not final
        if slow:
            self.spend(3)
        else:
            self.told_window()

    def told_window(self) -> None:
        assert self.window
        self.tell_active(ActiveEvent.TAKEN, epoch=self.window[0], final=self.window[2])
        self.window = None

    def send_unheld(self, more: int = 1) -> None:
        """The guest sends something, and nothing is held. `more`: 0: what was held for an epoch."""
        self.unheld -= more
        self.out += more
        self.permitted = self.safe = self.out
        self.let_all_out()

    def let_all_out(self) -> None:
        strict = self.setup.fence in STRICT
        self.check(not (strict and self.ran), "the active lets output out after the takeover")
        for position in range(self.let_out + 1, self.permitted + 1):
            self.emit(position, "A")
        self.let_out = self.permitted

    def emit(self, position: int, value: str) -> None:
        self.check(position <= len(self.seen) + 1, f"output {position} is missing outside")
        before = self.seen[position - 1 : position]
        self.check(before in ("", value), f"output {position} is seen with two values")
        self.seen += "" if before else value

    # -- the standby's edge -----------------------------------------------------------------------

    def tell_standby(self, event: StandbyEvent, since: int = 0, **told: Any) -> None:
        closes, before = False, self.standby.tip
        for do in self.standby.on(event, 0.0, **told):
            name = do.action.name
            if name in ("CLOSE", "REFUSE"):
                closes = True
            elif name == "SEND_HELLO":
                self.check(not self.decided, "a tip is told after the decision to take over")
                self.is_named |= self.setup.fence == "pidfd"  # it watches that process from now on
                self.send_up("HELLO", do.epoch.digest if do.epoch else "")
            elif name == "MERGE":
                assert do.epoch
                self.check(since <= self.memory, "an epoch is merged into memory that it does not follow")
                self.older = before if self.setup.disk else None
                self.is_named |= self.setup.fence == "lock"
                self.memory, self.whole = do.epoch.output[0], self.whole | {do.epoch.digest}
            elif name == "SEND_ACK":
                assert do.epoch
                self.check(not self.decided, "an ACK after the decision to take over")
                self.send_up("ACK", do.epoch.digest)
            elif name == "FORGET":
                self.memory = -1
            elif name == "SEND_READY":
                self.send_up("READY", do.epoch.digest if do.epoch else "")
            elif name in ("SEND_ASK", "SEND_TAKEN"):
                self.send_up(name[5:])
            elif name == "RUN_FENCE":
                self.fencing = self.decided = True
            elif name == "TAKE_OVER":
                self._take_over(do.epoch)
        if closes and self.standby_open:
            self.standby_open = False
            self.tell_standby(StandbyEvent.UNLINKED)

    def _take_over(self, tip: Epoch | None) -> None:
        if tip is None:
            raise ViolationError("a takeover without an epoch")
        self.check(not self.over, "a takeover of a guest that has ended")
        assert tip.output[0] == self.memory
        self.check(len(self.seen) <= self.memory, "a takeover from before what was released")
        self.ran = self.decided = True
        for position in range((self.standby.released or (0,))[0] + 1, self.memory + 1):
            self.emit(position, "A")
        self.went_on = self.memory

    # -- the link ---------------------------------------------------------------------------------

    def send_down(self, *message: Any) -> None:
        if self.active_open and self.standby_open and not self.cut:
            self.down += (message,)

    def send_up(self, *message: Any) -> None:
        if self.active_open and self.standby_open and not self.cut:
            self.up += (message,)

    def spend(self, which: int) -> None:
        self.budget = tuple(n - (i == which) for i, n in enumerate(self.budget))

    def invariants(self) -> None:
        may = self.active and self.active.may_release and not self.stopped and self.active.lease_until > 0
        self.check(not (may and self.ran and self.setup.fence != "liar"), "two may release")
        self.check(not (self.told_taken and not self.stopped), "the active goes on after TAKEN")
