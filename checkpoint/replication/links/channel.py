"""What carries messages to another host and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from checkpoint.replication.links.frames import Message

Supply = Callable[[], Sequence[Message]]
"""Gives the messages that are to be sent, when it is their turn."""


class Channel(Protocol):
    """A link to one other end. One task at a time may receive; any may send.

    Attributes:
        peer: the other end, for people.
        peer_pid: of a Unix socket: the process that has connected or that listens; None: not known.
        heard_at: when something came last, if only a part of a message, in time.monotonic(); 0.0: not known.
        peer_pidfd: a pidfd (pidfd_open(2)) of that process, which no later process with its number can have.
            It is closed with the channel: who needs it longer makes a copy (os.dup).
    """

    peer: str
    peer_pid: int | None
    peer_pidfd: int | None
    heard_at: float

    async def send(self, *messages: Message) -> None:
        """Send messages in their order, and wait as long as the other end is slow.

        If it is cancelled on its way, the channel is closed: the other end would take what follows for the
        rest of a message.

        Raises:
            LinkError: the other end has gone.
        """

    async def receive(self) -> Message:
        """The next message.

        Raises:
            LinkError: the other end has gone, refuses us, or has sent what it should not (and was told so).
        """
        raise NotImplementedError

    async def close(self, reason: str = "") -> None:
        """Wait a short time until what was sent has come, and a REFUSE if there is a reason.

        Who waits in `receive` or `send` gets a LinkError.
        """


class ActiveChannel(Channel, Protocol):
    """An active's: what it has to send changes until it is its turn."""

    async def send_from(self, supply: Supply) -> None:
        """`send` what a function gives, which is called when it can be sent."""

    def send_now(self, supply: Supply) -> bool:
        """As `send_from`, in any thread, without waiting. Its order is that of the calls of `supply`.

        Returns:
            False: something else is being sent; `supply` was not called.

        Raises:
            LinkError: as `supply`.
        """
        raise NotImplementedError
