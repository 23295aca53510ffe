"""The machines of the two roles: what they know, and the guards of the table. How to use them: machine.py."""

from __future__ import annotations

import math

from checkpoint.replication.protocol.machine import Do, Epoch, Machine, Marks, Told
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


class Active(Machine[ActiveState, ActiveEvent, ActiveAction]):
    """The side that runs the guest.

    Attributes:
        holds: whether the guest's output is held, so that there is no BYE before the epoch that has the
            guest's end (`final`) is acknowledged. What was taken back is in no epoch that is on its way.
        is_heir: this one has taken over.
        unprotected: and has sent no epoch that somebody may have: nobody else can come to run the guest, so
            that output need not be held but for what was sent behind an epoch that is on its way.
        acked: the last epoch that the standby is known to have; output up to it may be released.
        known: epochs from one of which we can go on, if it is the standby's tip: what has changed since the
            first of them is in the next epoch.
        sent: epochs on their way, the oldest first.
        final: the epoch since which the guest stands, or that has its end.
        lease_until: with a lease, when it is to be taken for lost, on the clock of `now`; from then on any
            event is FENCE_LOST.
    """

    rows = ACTIVE
    silence, loss = ActiveEvent.SILENT, ActiveEvent.UNLINKED
    refusal = ActiveAction.REFUSE

    def __init__(
        self, deadline: float, now: float = 0.0, *, holds: bool = False, is_heir: bool = False
    ) -> None:
        super().__init__(ActiveState.SEEKING, deadline, now)
        self.holds = holds
        self.is_heir = self.unprotected = is_heir
        self.acked: Epoch | None = None
        self.known: tuple[Epoch, ...] = ()
        self.sent: tuple[Epoch, ...] = ()
        self.final: Epoch | None = None
        self.lease_until = math.inf

    def _at(self, event: ActiveEvent, now: float) -> ActiveEvent:
        return ActiveEvent.FENCE_LOST if now >= self.lease_until else event

    def tick(self, now: float) -> list[Do[ActiveAction]]:
        """Take SILENT, or the end of the lease, if it is time."""
        return self.on(self.silence, now) if now >= min(self.silent_at, self.lease_until) else []

    def renewed(self, until: float) -> None:
        """Note that the lease was renewed.

        Args:
            until: when it ends at the earliest, by anybody's clock: reckoned from before the renewal was
                asked for, less what clocks may differ.
        """
        if self.state not in (ActiveState.RESIGNED, ActiveState.ENDED):
            self.lease_until = until

    @property
    def may_release(self) -> bool:
        """Whether output up to `acked` may still go out; an edge asks before each piece that it lets out."""
        return self.state not in (ActiveState.RESIGNED, ActiveState.ENDED)

    @property
    def parent(self) -> Epoch | None:
        """What the next epoch follows, while a standby is linked; None: it is a base."""
        return self.sent[-1] if self.sent else self.known[-1] if self.known else None

    # -- guards -----------------------------------------------------------------------------------

    def is_known(self, told: Told) -> bool:
        """The standby's tip is one from which we can go on."""
        return any(epoch.digest == told.digest for epoch in self.known)

    def is_anew(self, told: Told) -> bool:
        """We have taken over, no epoch of ours was acknowledged, and this standby has none.

        One that has come to have one before, and was cut off, may not take over from it: `REBASE` has seen to
        that, as always.
        """
        return self.is_heir and self.acked is None and not told.digest

    def is_sent(self, told: Told) -> bool:
        """The epoch is on its way."""
        return any(epoch.digest == told.digest for epoch in self.sent)

    def is_follows(self, told: Told) -> bool:
        """The epoch is a base, or the child of the last one."""
        parent = self.parent.digest if self.parent else ""
        return told.epoch is not None and told.epoch.parent in ("", parent)

    def is_final(self, told: Told) -> bool:
        """The guest stands since this epoch, which follows."""
        return told.final and self.is_follows(told)

    def is_settled(self, told: Told) -> bool:
        """All that was sent is acknowledged; if output is held, the epoch with the guest's end, too."""
        if self.sent:
            return False
        return not self.holds or self.unprotected or (self.final is not None and self.final == self.acked)

    def is_ready(self, told: Told) -> bool:
        """The standby means the final epoch, and has acknowledged it."""
        return self.final is not None and self.final == self.acked and told.digest == self.final.digest

    def is_stands(self, told: Told) -> bool:
        """The standby's tip is the final epoch."""
        return self.final is not None and told.digest == self.final.digest

    # -- what actions change ----------------------------------------------------------------------

    def _do(self, action: ActiveAction, event: ActiveEvent, told: Told) -> Do[ActiveAction]:
        a = ActiveAction
        match action:
            case a.HOLD | a.LET_OUT:
                self.unprotected = action is a.LET_OUT
            case a.FOLLOW:
                self.known = tuple(epoch for epoch in self.known if epoch.digest == told.digest)
                return Do(action, self.known[0])
            case a.REBASE:
                self.known = ()
            case a.SEND_END if told.epoch:
                self.sent += (told.epoch,)
                self.final = told.epoch if told.final else None
                return Do(action, told.epoch)
            case a.RELEASE:
                self._acknowledged(told.digest)
                return Do(action, self.acked)
            case a.TAKE_BACK:
                self.known, self.sent, self.final = self.known + self.sent, (), None
            case a.SEND_FINAL:
                return Do(action, self.final)
            case a.RESIGN:
                self.lease_until = math.inf
            case a.STOP:
                reason = (
                    "the standby runs the guest" if event is ActiveEvent.STAND_IN else "the fence is lost"
                )
                return Do(action, None, reason)
            case a.SAY_MAY_NOT:
                is_linked = self.state is ActiveState.GREETED
                reason = "the standby has no whole epoch yet" if is_linked else "no standby is linked"
                return Do(action, None, reason)
        return Do(action)

    def _acknowledged(self, digest: str) -> None:
        for n, epoch in enumerate(self.sent):
            if epoch.digest == digest:
                self.known, self.sent = (epoch,), self.sent[n + 1 :]
                break
        self.acked = next((epoch for epoch in self.known if epoch.digest == digest), self.acked)


class Standby(Machine[StandbyState, StandbyEvent, StandbyAction]):
    """The side that has the guest's memory, and runs it when the active is dead or has resigned.

    Attributes:
        tip: the last whole epoch. One that a chain on disk has at the start is told to the active, which may
            go on from it, but nobody takes over from it (EMPTY): more may have been released since.
        run: the guest whose epochs these are, from its first active on; those of another one are refused.
        term: how often it was taken over until these epochs were taken.
        ready: digest of the epoch that we have said we are ready to take over from, on this link.
        released: what the active has said last that it has released (END, BEAT, GO); it may be more by now.
    """

    rows = STANDBY
    silence, loss = StandbyEvent.SILENT, StandbyEvent.UNLINKED
    refusal = StandbyAction.REFUSE

    def __init__(self, deadline: float, now: float = 0.0, tip: Epoch | None = None) -> None:
        super().__init__(StandbyState.EMPTY, deadline, now)
        self.tip = tip
        self.run, self.term = "", 0
        self.ready = ""
        self.released: Marks = ()

    def noted(self, released: Marks) -> None:
        """Note what the active says that it has released."""
        self.released = released

    # -- guards -----------------------------------------------------------------------------------

    @property
    def whole(self) -> int:
        """The number of the last whole epoch, -1 for none."""
        return self.tip.number if self.tip else -1

    def is_fits(self, told: Told) -> bool:
        """The epoch is a base, or the child of the tip."""
        tip = self.tip.digest if self.tip else ""
        return told.epoch is not None and told.epoch.parent in ("", tip)

    def is_newer(self, told: Told) -> bool:
        """The hello is of this guest, which was taken over since the tip."""
        return told.run == self.run and told.term > self.term

    def is_stale(self, told: Told) -> bool:
        """The hello is of this guest, from before a takeover that we know of."""
        return told.run == self.run and told.term < self.term

    def is_foreign(self, told: Told) -> bool:
        """The hello is of another guest than the tip, or from before or behind a takeover of it."""
        return (told.run, told.term) != (self.run, self.term)

    def is_whole(self, told: Told) -> bool:
        """The final epoch is the tip."""
        return self.tip is not None and told.digest == self.tip.digest

    def is_ready(self, told: Told) -> bool:
        """We have said READY for the tip, on this link."""
        return self.tip is not None and self.ready == self.tip.digest

    # -- what actions change ----------------------------------------------------------------------

    def _do(self, action: StandbyAction, event: StandbyEvent, told: Told) -> Do[StandbyAction]:
        a = StandbyAction
        match action:
            case a.FORGET:
                self.tip, self.ready = None, ""
            case a.SEND_HELLO:
                self.run, self.term = told.run, told.term
                return Do(action, self.tip)
            case a.DROP_PARTIAL:
                self.ready = ""
            case a.MERGE:
                self.tip, self.ready = told.epoch, ""
                return Do(action, self.tip)
            case a.SEND_READY if self.tip:
                self.ready = self.tip.digest
                return Do(action, self.tip)
            case a.SEND_ACK | a.TAKE_OVER:
                return Do(action, self.tip)
            case a.SAY_MAY_NOT:
                return Do(action, None, self._why(event))
        return Do(action)

    def _why(self, event: StandbyEvent) -> str:
        if self.state is StandbyState.EMPTY:
            return "no epoch has become whole since the start"
        if event is StandbyEvent.SWITCHOVER:
            return "the active cannot be asked: there is no link"
        return "no fence says that the active can release nothing any more"
