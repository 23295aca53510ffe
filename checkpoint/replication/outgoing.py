"""Epochs on their way from the threads of a session to the link's, and acknowledgements back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from checkpoint.errors import StandbyAwayError
from checkpoint.replication.held import HeldOutput
from checkpoint.replication.links.frames import MAX_BODY, Kind, Message
from kvmglue import Positions

NO_STANDBY = "no standby is connected"

BYTES = 32 << 20
"""So many bytes may wait for the link before a session has to wait."""
AT_ONCE = 64 << 10
"""So many bytes are sent before the epoch that they belong to is whole."""
UNACKNOWLEDGED = 128 << 20
"""So many bytes may be sent, and not acknowledged."""


Ticket = tuple[int, int]
"""Of an epoch that was announced: of which link, and the how manieth; no other one has it."""


class _Flying(NamedTuple):
    """An epoch that was sent; `at`: when, on the monotonic clock; `output`: up to where it has that."""

    digest: str
    number: int
    size: int
    at: float
    output: Positions
    ticket: Ticket


class Outgoing:
    """What a session sends, and what of it was acknowledged.

    While no standby is linked, whatever is sent fails with `StandbyAwayError`, and so does what was not
    acknowledged when the link broke.

    Attributes:
        away: why nothing can be sent; "" if it can.
        begun: the number of the epoch that was begun last, -1 for none.
        sent: the number of the last one that was sent, -1 for none.
        acknowledged: the number of the last one that a standby has, -1 for none.
        unacknowledged: bytes of epochs that were sent and not acknowledged.
        features: what the standby that is linked takes, of `FEATURES`.
        arrived: called in the link's thread when something is not on its way any more.
    """

    def __init__(self, wake: Callable[[], object], held: HeldOutput | None = None) -> None:
        """Args:
        wake: called in any thread when there is something to send.
        held: the output of which epochs tell up to where they have it.
        """
        self.away = NO_STANDBY
        self.begun = self.sent = self.acknowledged = -1
        self.unacknowledged = 0
        self.features: frozenset[str] = frozenset()
        self.arrived: Callable[[], None] = lambda: None
        self._wake, self._held = wake, held
        self._changed = threading.Condition()
        self._queue: deque[Message] = deque()
        self._queued = 0
        self._life = 0  # of the link
        self._flying: deque[_Flying] = deque()
        self._announced = 0
        self._come: Ticket = (-1, 0)  # of what was acknowledged last

    # -- threads of a session ---------------------------------------------------------------------

    @property
    def lag_us(self) -> float:
        """For how long the oldest epoch that was sent is not acknowledged."""
        with self._changed:
            return round((time.monotonic() - self._flying[0].at) * 1e6) if self._flying else 0.0

    @property
    def life(self) -> int:
        """Which link this is: what was sent by another one has failed."""
        return self._life

    def send(self, life: int, *messages: Message) -> None:
        """Send messages; waits while the link, or the standby, is behind.

        Raises:
            StandbyAwayError: the link of that life has gone.
        """
        size = sum(len(message.body) for message in messages)
        with self._changed:
            self._changed.wait_for(lambda: self._life != life or self.away or not self._is_full())
            self._check(life)
            self._queue.extend(messages)
            self._queued += size
            is_much = self._queued >= AT_ONCE
        if is_much:  # else they go with the end of the epoch
            self._wake()

    def announce(
        self, life: int, digest: str, number: int, size: int, output: Positions, end: Message
    ) -> Ticket:
        """Send the end of an epoch, which is to be acknowledged from then on. Raises: as `send`.

        Args:
            output: up to where the guest's output is in epochs then.

        Returns:
            What `wait` takes.
        """
        with self._changed:
            self._check(life)
            self._announced += 1
            ticket = life, self._announced
            self._flying.append(_Flying(digest, number, size, time.monotonic(), output, ticket))
            self.unacknowledged += size
            self.sent = number
            self._queue.append(end)
        self._wake()
        return ticket

    def wait(self, ticket: Ticket) -> None:
        """Wait until an epoch that was sent is acknowledged.

        Raises:
            StandbyAwayError: the link has gone before that.
        """
        life, _ = ticket
        with self._changed:
            self._changed.wait_for(lambda: self._life != life or self._has_come(ticket))
            if not self._has_come(ticket):  # it may have, and the link may have gone since
                self._check(life)

    def is_on_its_way(self, ticket: Ticket) -> bool:
        """Whether `wait` has to wait."""
        return self._life == ticket[0] and not self._has_come(ticket)

    def _has_come(self, ticket: Ticket) -> bool:
        return self._come[0] == ticket[0] and ticket[1] <= self._come[1]

    def _is_full(self) -> bool:
        return self._queued > BYTES or self.unacknowledged > UNACKNOWLEDGED

    def _check(self, life: int) -> None:
        if self._life != life or self.away:
            raise StandbyAwayError(self.away or "the standby has just come back")

    # -- the link's thread ------------------------------------------------------------------------

    def take(self) -> Sequence[Message]:
        """What is to be sent now, about a megabyte at most."""
        taken: list[Message] = []
        size = 0
        with self._changed:
            was_full = self._is_full()
            while self._queue and size < MAX_BODY:
                taken.append(self._queue.popleft())
                size += len(taken[-1].body)
            self._queued -= size
            if was_full:
                self._changed.notify_all()
        return taken

    def link(self, features: frozenset[str]) -> None:
        """A standby is linked, and epochs can go to it."""
        with self._changed:
            self._life += 1
            self.away = ""
            self.features = features
            self._changed.notify_all()
        self.arrived()

    def unlink(self, why: str) -> None:
        """Nothing can be sent any more; what is not acknowledged fails."""
        with self._changed:
            self._life += 1
            self.away = why
            self._queue.clear()
            self._flying.clear()
            self._queued = self.unacknowledged = 0
            self._changed.notify_all()
        self.arrived()

    def acknowledge(self, digest: str) -> bool:
        """An epoch was acknowledged, and all before it. False: it was not sent by this link."""
        with self._changed:
            upto = [flying.output for flying in self._flying if flying.digest == digest]
        if not upto:
            return False
        if self._held:
            self._held.packets_acknowledged(upto[0])  # before the session's threads have anything to do
        with self._changed:
            while True:
                flown = self._flying.popleft()
                self.unacknowledged -= flown.size
                self.acknowledged = flown.number
                self._come = flown.ticket
                if flown.digest == digest:
                    break
            self._changed.notify_all()
        self.arrived()
        return True


def parts_of(offset: int, data: bytes | bytearray, zstd: bool) -> list[Message]:
    """Messages that carry a part of an image; `zstd`: they are compressed on their way."""
    view = memoryview(data)
    return [
        Message(Kind.PART, {"offset": offset + at, "zstd": zstd}, view[at : at + MAX_BODY])
        for at in range(0, len(view), MAX_BODY)
    ]
