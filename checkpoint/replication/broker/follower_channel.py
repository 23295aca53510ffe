"""A standby's channel to the active through a broker."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from checkpoint.errors import LinkError
from checkpoint.replication.broker.batch import carries_epoch, unpack
from checkpoint.replication.broker.broker_channel import tip_of
from checkpoint.replication.broker.identity import whose
from checkpoint.replication.broker.lease import State
from checkpoint.replication.broker.mailbox import Mailbox
from checkpoint.replication.broker.nats_connection import NotNowError
from checkpoint.replication.broker.stream import Entry, Stream
from checkpoint.replication.links.frames import Encoder, Kind, Message
from uffdtrack.errors import UffdtrackError

_ROOM = 8
"""Messages of up to 1 MiB that wait to be received."""


class FollowerChannel:
    """A `Channel` (channel.py) to the active.

    Attributes:
        linked: the active hears us; else we only follow.
    """

    peer_pid: int | None = None
    peer_pidfd: int | None = None
    heard_at = 0.0

    def __init__(self, stream: Stream, answer: dict[str, Any]) -> None:
        """Raises: LinkError: the answer to our wish to follow is malformed."""
        try:
            self.link, self.linked = str(answer["link"]), bool(answer["linked"])
            self.number, self.sequence = int(answer["number"]), int(answer["sequence"])
        except (KeyError, TypeError, ValueError) as error:
            raise LinkError("the active's answer is malformed") from error
        self.peer = f"{stream.connection.url}/{stream.name}"
        self.mail = Mailbox(_ROOM)
        self.greeted = asyncio.Event()
        self._tip = ""
        self._fits = False  # from then on each epoch is a child of the one before
        self._wanted = False  # the epoch that is under way
        self._heard = isinstance(answer.get("hello"), dict)
        self._stream = stream
        self._encoder = Encoder()
        if self._heard:
            self.mail.offer(Message(Kind.HELLO, answer["hello"]))

    async def send(self, *messages: Message) -> None:
        """See `Channel`."""
        for message in messages:
            if self.mail.error:
                raise self.mail.error
            if message.kind is Kind.HELLO:
                self._tip = tip_of(message)
                self.greeted.set()
            data = b"".join(self._encoder.encode(message))
            try:
                await self._stream.connection.publish(self._stream.live(f"up.{self.link}"), data)
            except NotNowError as error:
                self.mail.end(LinkError(f"the broker does not answer: {error}"))

    async def receive(self) -> Message:
        """See `Channel`."""
        return await self.mail.get()

    async def close(self, reason: str = "") -> None:
        """See `Channel`."""
        if reason:
            with contextlib.suppress(UffdtrackError):
                await self.send(Message(Kind.REFUSE, {"reason": reason}))
        self.mail.end(LinkError(reason or "the link was closed"))

    async def take(self, entry: Entry) -> None:
        """Have the messages of a record received. Raises: LinkError: it is not for us."""
        if entry.record.number != self.number:
            raise LinkError(f"{whose(entry.record.holder)} is active now")
        if entry.record.state is State.SEEKING:
            raise LinkError("the active looks for a standby")
        if not entry.batch:
            return
        ours = entry.batch.link == self.link
        if self.linked and not ours:
            raise LinkError("the active has linked another standby")
        async for message in unpack(self._stream, entry):
            if message.kind is Kind.HELLO:
                if not self._heard:
                    self._heard = True
                    await self.mail.put(message)
                continue
            await self.greeted.wait()
            if message.kind is Kind.BEGIN:
                self._wanted = self._fits or message.meta.get("parent", "") in ("", None, self._tip)
                self._fits = self._wanted
            if self._wanted if carries_epoch(message) else ours or message.kind is Kind.BYE:
                await self.mail.put(message)

    def beat(self, message: Message) -> None:
        """Have a BEAT received, if HELLO was, and if there is room: else there is something newer."""
        if self._heard and self.greeted.is_set() and not self.mail.error:
            self.mail.offer(message)
