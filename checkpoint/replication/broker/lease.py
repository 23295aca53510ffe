"""Who is active: a lease, as the last record of a stream has it. Without I/O; times are passed in.

All records of a stream are written with its last sequence number, so that of two that are written at the
same time the server takes one. Each says who holds the lease, and for how long: what carries an epoch renews
it as well. So nothing that a stale holder writes is stored once somebody else has taken the lease.

The holder reckons from before it has asked for a renewal, and on its own clock. Who waits for the lease
reckons from when it has seen the last record, on its own clock, too, and for a little longer, as clocks
differ in rate. No clock is compared with another.
"""

from __future__ import annotations

import enum
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from checkpoint.errors import LeaseError, LinkError
from checkpoint.replication.broker.identity import whose

RATE_MARGIN = 1.01
"""How much faster one host's clock may run than another's; NTP slews by 0.05 % at most."""
RENEWALS = 3
"""A lease is renewed so many times while it lasts."""


def clock() -> float:
    """Seconds on a clock that goes on while the host is suspended, and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class State(enum.Enum):
    """What the holder says of itself."""

    HELD = "held"
    SEEKING = "seeking"  # it is linked to no standby, and wants one
    RESIGNED = "resigned"  # it has stopped for good: the successor need not wait
    ENDED = "ended"  # there is nothing to take over


@dataclass(frozen=True, slots=True)
class Record:
    """What a record says of the lease.

    Attributes:
        number: the fencing number; each holder's is one more than that of the one before.
        holder: its id.
        serial: counts the records of this holder.
        seconds: for so long it is the holder's, from before it has asked for the record on.
        successor: id of the standby that may take it over when it has ended; "": nobody may.
    """

    number: int
    holder: str
    serial: int
    seconds: float
    successor: str = ""
    state: State = State.HELD

    def text(self) -> str:
        return json.dumps({**asdict(self), "state": self.state.value}, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Record:
        """Raises: LinkError: it is no record of ours."""
        try:
            found: dict[str, Any] = json.loads(text)
            record = cls(**{**found, "state": State(found["state"])})
            numbers = (record.number, record.serial, record.seconds)
            if not all(isinstance(n, (int, float)) and 0 <= n < math.inf for n in numbers):
                raise ValueError("a number is none")
            if not isinstance(record.holder, str) or not isinstance(record.successor, str):
                raise TypeError("a name is none")
        except (ValueError, TypeError, KeyError) as error:
            raise LinkError(f"what the broker has is no lease of uffdtrack's: {error}") from error
        return record


_STOPPED = State.RESIGNED, State.ENDED


class Holder:
    """The lease of who writes the records.

    At most one record is on its way. If it is not known whether it was stored, the stream's last record says
    so: it is the pending one (`stored`), or another one (`missed`).

    Attributes:
        record: the last that is known to be stored, or the first to be written.
        sequence: its number in the stream; 0: the stream is empty.
        valid_until: seconds; the lease cannot end earlier, by anybody's clock.
        pending: a record of which it is not known whether it is stored.
        lost: why it is not ours any more; "": it may be ours.
    """

    def __init__(self, record: Record, sequence: int) -> None:
        """Ask for a lease.

        Args:
            record: what it will say. `Watcher.claim` makes it.
            sequence: of the last record that we have seen.
        """
        self.record = replace(record, serial=0)
        self.sequence = sequence
        self.valid_until = -math.inf
        self.pending: Record | None = None
        self.lost = ""
        self._asked = -math.inf
        self._serial = 0
        self._stopped = False

    def ask(self, now: float, **changes: Any) -> Record:
        """The next record, before it is sent. Nothing may be pending.

        Raises:
            LeaseError: the lease is lost.
        """
        self.check()
        assert not self.pending
        if self._stopped and changes.get("state") not in _STOPPED:
            changes.pop("state", None)  # it has resigned meanwhile, for good
        self._serial += 1  # never twice: what was thought to be refused is not taken for another one
        self.pending = replace(self.record, serial=self._serial, **changes)
        self._asked = now
        self._stopped = self._stopped or self.pending.state in _STOPPED
        return self.pending

    def stored(self, sequence: int) -> None:
        """What is pending was stored."""
        assert self.pending
        self.record, self.sequence, self.pending = self.pending, sequence, None
        self.valid_until = self._asked + self.record.seconds

    def missed(self, record: Record | None, sequence: int) -> bool:
        """Learn that the stream's last record is not the one that is pending.

        An older record than ours may be from a server that does not know yet that it leads no more: then
        who leads refuses what is sent behind it. Or the broker has lost its last records.

        Returns:
            Whether what is pending can be sent again now; else look again.

        Raises:
            LeaseError: somebody else has the lease.
        """
        if not record:  # or the broker has lost all of them
            if self.valid_until > -math.inf:
                self.sequence = 0
            return True
        if record.holder == self.record.holder:
            self.sequence = sequence  # also one that was given up, and stored all the same
            return True
        if sequence > self.sequence or record.number >= self.record.number:
            self.lost = f"the lease is lost: {whose(record.holder)} has it"
            self.check()
        return False

    @property
    def successors(self) -> set[str]:
        """Those of whom each may be the one that is named, by what may be stored."""
        return {record.successor for record in (self.record, self.pending) if record}

    def check(self) -> None:
        """Raises: LeaseError: it is lost."""
        if self.lost:
            raise LeaseError(self.lost)

    def may_release(self, now: float) -> bool:
        """Whether output may go out now. After its end a lease may be renewed, if nobody has taken it."""
        return not self.lost and not self._stopped and now < self.valid_until

    def renewal_at(self) -> float:
        """When the next record is due, whatever it carries."""
        return self._asked + self.record.seconds / RENEWALS


class Watcher:
    """The lease as one sees it who does not hold it.

    Attributes:
        record: the last one that was seen, or None.
        sequence: its number.
        since: from when on it is waited for. After the connection was lost, from when it is there again: the
            broker may have lost its last records, and who has written them can hold the lease no longer.
    """

    def __init__(self, me: str, now: float) -> None:
        self.me = me
        self.record: Record | None = None
        self.sequence = 0
        self.since = now

    def seen(self, record: Record | None, sequence: int, now: float) -> None:
        """Note the last record of the stream, or none."""
        if (record, sequence) != (self.record, self.sequence):
            self.record, self.sequence, self.since = record, sequence, now

    def connected(self, now: float) -> None:
        """The connection was lost and is there again."""
        self.since = now

    @property
    def is_successor(self) -> bool:
        """Whether it may take over when the lease has ended.

        A claim of its own that was stored without our knowing is waited for like that of another one.
        """
        record = self.record
        if not record or record.state is State.ENDED:
            return False
        return self.me in (record.successor, record.holder)

    def free_at(self) -> float:
        """When the lease can be claimed; infinity: not by this one.

        A new active waits twice as long as the successor, so that it takes nothing from it.
        """
        if not self.record or self.record.state is State.ENDED:
            return -math.inf
        if self.record.state is State.RESIGNED and self.is_successor:
            return -math.inf
        return self.since + self.record.seconds * RATE_MARGIN * (1 if self.is_successor else 2)

    def claim(self, now: float, seconds: float, standby: bool) -> Holder | None:
        """A holder that asks for the lease; None: it may not, yet or at all.

        Args:
            seconds: how long a renewal is to last.
            standby: it is one, so it may take over only what it is the successor of.
        """
        if standby and not self.is_successor:
            return None
        if now < self.free_at():
            return None
        number = self.record.number + 1 if self.record else 1
        return Holder(Record(number, self.me, 0, seconds), self.sequence)
