"""One link of an active to its standby, from the hello to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from checkpoint.errors import LinkError
from checkpoint.replication.edge import first_of
from checkpoint.replication.links.channel import Channel
from checkpoint.replication.links.frames import Kind, Message
from checkpoint.replication.outgoing import Outgoing
from checkpoint.replication.protocol.machine import Do, Epoch
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
        """An epoch is whole; returns what is to be sent of that."""

    def heard(self) -> None: ...
    def greeted(self, channel: Channel, hello: Mapping[str, Any]) -> None: ...
    def told(self) -> dict[str, Any]:
        """What an END, BEAT or GO says beside its own."""


class ActiveLink:
    """Serves one channel."""

    def __init__(self, owner: Owner, channel: Channel) -> None:
        self._owner = owner
        self._channel = channel

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
        owner.greeted(channel, hello)
        await first_of(self._send_all(), self._receive_all())

    async def _send_all(self) -> None:
        outgoing = self._owner.outgoing
        while True:
            messages = outgoing.take()
            if not messages:
                await self._owner.news.wait()
                self._owner.news.clear()
                continue
            ready: list[Message] = []
            for message in messages:
                ready += self._ended(message) if message.kind is Kind.END else [message]
            await self._channel.send(*ready)

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
