"""What carries messages to another host and back."""

from __future__ import annotations

from typing import Protocol

from checkpoint.replication.links.frames import Message


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
