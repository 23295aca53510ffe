"""One injection with a broker: an active and a standby that reach each other by a cluster of NATS servers."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tests.helpers import wait_for
from tests.replication.faults import LEASES
from tests.replication.injection import Deed, Trial
from tests.replication.nats_relay import EventTrigger
from tests.replication.outside import OutsideError
from tests.replication.packets import Packets
from tests.replication.plan import Plan
from tests.replication.relayed_cluster import RelayedCluster
from tests.replication.zygote import Hook, Started, Zygote

LOOK = 0.05
"""Seconds between two questions to the broker who may take over."""
_numbers = itertools.count()


@dataclass(frozen=True)
class BrokerPlan(Plan):
    """Beside what a plan has.

    Attributes:
        event: at which the failure comes, see nats_wire.py; "": by a hook.
        role: of the server that fails: 0, the leader; 1 and 2, the others.
        at: which server the active knows, and which one the standby.
        takeover: the active is killed first; the event is one of the takeover.
        lease: seconds, of `LEASES`.
    """

    event: str = ""
    role: int = 0
    at: tuple[int, int] = (0, 1)
    takeover: bool = False
    lease: float = LEASES[0]


class BrokerTrial(Trial):
    """The processes of one injection, and a name of their own at a cluster."""

    patience = 60.0
    """A cluster chooses a leader within ten seconds, one for each stream."""
    deadline = 0.6

    def __init__(self, zygote: Zygote, plan: BrokerPlan, cluster: RelayedCluster) -> None:
        super().__init__(zygote, plan)
        self.broker_plan = plan
        self.cluster = cluster
        self.name = f"m{os.getpid()}-{next(_numbers)}"
        self._failed: int | None = None
        self._before = 0
        self._looked, self._successor = 0.0, True

    def join(self, stack: ExitStack) -> None:
        watch = self.cluster.watch
        watch.begin(self.name)
        self.events = watch.events
        stack.callback(self._leave)

    def _leave(self) -> None:
        self.cluster.watch.begin("")
        self.cluster.make_whole()
        self.cluster.drop(self.name)

    def _address(self, role: int) -> str:
        port = self.cluster.clients[self.broker_plan.at[role]].port
        return f"nats://127.0.0.1:{port}/{self.name}"

    def standby_words(self) -> list[object]:
        return ["--follow", self._address(1)]

    def note_standby(self) -> None:
        self._before = len(self.events.standbys)

    def active_words(self) -> list[object]:
        return ["--replicate", self._address(0)]

    def hooks_of(self, role: int) -> Sequence[Hook]:
        hooks = super().hooks_of(role)
        if role:
            return hooks
        return [*hooks, Hook("", "note-releases"), Hook("", f"lease {self.broker_plan.lease:g}")]

    def set_trigger(self, do: Callable[[], None]) -> None:
        plan = self.broker_plan
        if plan.event:
            trigger = EventTrigger(plan.event, plan.when, plan.nth, do)
            self.cluster.watch.trigger, self.fired = trigger, trigger.fired.is_set

    def deeds(self) -> tuple[Deed, Deed]:
        from tests.replication.broker_failures import BROKER_FAILURES

        return BROKER_FAILURES[self.plan.failure]

    def process(self, role: str) -> Started:
        """One of them; the standby may ask for a link when the active is just being started."""
        wait_for(lambda: getattr(self, role) is not None, f"there is an {role}")
        process: Started = getattr(self, role)
        return process

    def server(self) -> int:
        """The one that fails."""
        if self._failed is None:
            self._failed = self.cluster.role(self.name, self.broker_plan.role)
        return self._failed

    # -- the course -------------------------------------------------------------------------------

    def begin(self) -> None:
        super().begin()
        if self.broker_plan.takeover:
            self.await_progress(0)
            assert self.active
            self.active.kill()

    def let_go(self) -> None:
        self.check_acknowledged()
        if self.plan.hooks[0]:  # where it was stopped
            self.outside.may_mix |= self._is_releasing()
        super().let_go()

    def stop_active(self) -> None:
        """SIGSTOP; see whether it is about to release something by a lease that it had."""
        self.process("active").send(signal.SIGSTOP)
        self.outside.may_mix |= self._is_releasing()

    def _is_releasing(self) -> bool:
        path = self.place / "active.log.releasing"
        return path.exists() and bool(path.read_bytes()[0])

    def check(self) -> None:
        could = len(self.standbys) == 1 and not self.standby.has_ended() and not self.plan.until
        super().check()
        self.check_acknowledged()
        if self.outside.count() and could and not self.has_moved():
            raise OutsideError("something was released, and nobody may take over")

    def check_acknowledged(self) -> None:
        """Whatever the active has released by now, a standby has acknowledged it by now."""
        sent = self.outside.sent_by_active()
        upto = max((self._noted("to", digest) for digest in list(self.events.acknowledged)), default=0)
        if sent > upto:
            raise OutsideError(f"{sent} were released, and {upto} acknowledged")

    def logs(self) -> str:
        return f"{super().logs()}\n{self.cluster.state()}"

    # -- what is so -------------------------------------------------------------------------------

    def listens(self) -> bool:
        return "following" in self.standby.said

    def was_acknowledged(self) -> bool:
        return bool(self.events.acknowledged)

    def is_guest_lost(self) -> bool:
        """The active has ended, and the standby has too, or the broker does not name it."""
        assert self.active
        if not self.active.has_ended():
            return False
        if self.standby.has_ended():
            return True
        if time.monotonic() > self._looked + LOOK:
            try:
                self._successor = self._is_successor()
            except OSError:
                self._successor = True  # not yet known
            self._looked = time.monotonic()
        return not self._successor

    def _is_successor(self) -> bool:
        record = self.cluster.last_record(self.name)
        mine = self.events.standbys[self._before :]
        return bool(record and mine and mine[-1] in (record.successor, record.holder))

    def known(self) -> int:
        return max((self._noted("from", digest) for digest in self.events.acknowledged), default=0)

    def _noted(self, what: str, digest: str) -> int:
        """What the active has noted of an epoch."""
        for line in (self.place / "active.log.notes").read_text().splitlines():
            words = line.split()
            if words[:2] == [what, digest] and len(words) == 4:
                return int(words[2 + isinstance(self.outside, Packets)])
        return 0
