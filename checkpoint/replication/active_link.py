"""One link of an active to its standby, from the hello to its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from checkpoint.errors import LinkError
from checkpoint.replication.edge import first_of
from checkpoint.replication.links.channel import ActiveChannel, Channel
from checkpoint.replication.links.frames import Kind, Message
from checkpoint.replication.outgoing import Outgoing
from checkpoint.replication.protocol.machine import Do, Epoch
from checkpoint.replication.protocol.peer import Active
from checkpoint.replication.protocol.table import ActiveAction, ActiveEvent


class Owner(Protocol):
    """The edge that a link belongs to.

    Attributes:
        about, features: for HELLO.
        news: set when there is something to send.
    """

    deadline: float
    about: Mapping[str, Any]
    features: Collection[str]
    outgoing: Outgoing
    news: asyncio.Event

    def on(self, event: ActiveEvent, digest: str = "") -> str: ...
    def take(self, epoch: Epoch) -> list[Do[ActiveAction]]:
        """An epoch is whole; returns what is to be sent of that. In any thread."""

    def heard(self) -> None: ...
    def greeted(self, channel: Channel, hello: Mapping[str, Any], send_now: Callable[[], bool]) -> None:
        """`send_now`: of the link."""

    def told(self) -> dict[str, Any]:
        """What an END, BEAT or GO says beside its own."""


class SharedActive(Active):
    """The machine of the link's thread and of the one that sends the end of an epoch."""

    def __init__(self, deadline: float, now: float, *, holds: bool, is_heir: bool) -> None:
        super().__init__(deadline, now, holds=holds, is_heir=is_heir)
        self._turn = threading.RLock()

    def on(self, event: ActiveEvent, now: float, **told: Any) -> list[Do[ActiveAction]]:
        with self._turn:
            return super().on(event, now, **told)


class ActiveLink:
    """Serves one channel."""

    def __init__(self, owner: Owner, channel: ActiveChannel) -> None:
        self._owner = owner
        self._channel = channel
        self._failure: LinkError | None = None

    async def serve(self) -> None:
        """Until the link ends. Raises: LinkError: why it has."""
        owner, channel = self._owner, self._channel
        try:
            about = {
                "role": "active", "features": list(owner.features), "deadline": owner.deadline,
                **owner.about,
            }  # fmt: skip
            await channel.send(Message(Kind.HELLO, about))
            async with asyncio.timeout(owner.deadline):
                hello = (await channel.receive()).meta
        except TimeoutError as error:
            raise LinkError(f"{channel.peer} does not answer") from error
        if hello.get("role") != "standby":
            raise LinkError(f"{channel.peer} is no standby")
        if hello.get("runs"):
            owner.on(ActiveEvent.STAND_IN)
            raise LinkError("the standby runs the guest")
        owner.greeted(channel, hello, self.send_now)
        await first_of(self._send_all(), self._receive_all())

    def send_now(self) -> bool:
        """Send all that waits, in the calling thread. False: the link's has to do it."""
        try:
            return self._channel.send_now(self._due) and not self._owner.outgoing.waits
        except LinkError as error:
            self._failure = error
            return False

    async def _send_all(self) -> None:
        while True:
            if self._failure:
                raise self._failure
            if self._owner.outgoing.waits:
                await self._channel.send_from(self._due)
            else:
                await self._owner.news.wait()
                self._owner.news.clear()

    def _due(self) -> list[Message]:
        """What is sent now, by whose turn it is."""
        due: list[Message] = []
        for message in self._owner.outgoing.take():
            due += self._ended(message) if message.kind is Kind.END else [message]
        return due

    def _ended(self, end: Message) -> list[Message]:
        """An epoch is whole: what is sent of that."""
        meta = {**end.meta, **self._owner.told()}
        epoch = Epoch(meta["epoch"], meta["digest"], "" if meta["base"] else meta["parent"])
        sent: list[Message] = []
        for do in self._owner.take(epoch):
            if do.action is ActiveAction.SEND_END:
                sent.append(Message(Kind.END, meta))
            elif do.action is ActiveAction.SEND_FINAL:
                sent.append(final_message(epoch))
            else:
                raise LinkError("an epoch was taken that does not follow what the standby has")
        return sent

    async def _receive_all(self) -> None:
        events = {
            Kind.ACK: ActiveEvent.ACKED,
            Kind.READY: ActiveEvent.READY,
            Kind.TAKEN: ActiveEvent.STAND_IN,
            Kind.ASK: ActiveEvent.SWITCHOVER,
        }
        while True:
            message = await self._channel.receive()
            self._owner.heard()
            if message.kind in events:
                self._owner.on(events[message.kind], str(message.meta.get("digest", "")))
            elif message.kind is not Kind.BEAT:
                raise LinkError(f"a standby sends no {message.kind.name}")


def final_message(epoch: Epoch) -> Message:
    """The guest stands since that epoch."""
    return Message(Kind.FINAL, {"epoch": epoch.number, "digest": epoch.digest})
