"""The active's channel to a standby through a broker, and what it knows of standbys that only follow."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from checkpoint.errors import LinkError
from checkpoint.replication.broker.batch import Packer
from checkpoint.replication.broker.head import Head
from checkpoint.replication.broker.identity import whose
from checkpoint.replication.broker.lease import State, clock
from checkpoint.replication.broker.mailbox import Mailbox
from checkpoint.replication.broker.nats_connection import NotNowError
from checkpoint.replication.links.frames import Decoder, Kind, Message
from uffdtrack.errors import StorageError, UffdtrackError

if TYPE_CHECKING:
    from checkpoint.replication.broker.broker_active import BrokerActive

_ROOM = 256
"""Messages of a standby's that nobody has received yet; with more, it is refused."""
_MOST_FOLLOWERS = 64
_OVERHEAD = 512
"""Bytes that a message takes in the broker's files beside its contents, at most."""


def tip_of(hello: Message) -> str:
    """Digest of the epoch that a standby has, "" if it has none."""
    tip = hello.meta.get("tip")
    return str(tip.get("digest", "")) if isinstance(tip, Mapping) else ""


class BrokerChannel:
    """A `Channel` (channel.py) to the standby that is linked.

    What is sent goes into the stream, and all standbys read it, but for BEAT, which is not kept, and REFUSE.
    `send` returns when the broker has stored an epoch with its END, which says nothing about any standby. It
    waits while the standby has so much unread that the broker might drop it.

    Attributes:
        standby: its id. link: the number of this channel.
        hello: the active's.
        closed: it is of no use any more.
    """

    peer_pid: int | None = None
    peer_pidfd: int | None = None
    heard_at = 0.0

    def __init__(self, broker: BrokerActive, link: str, standby: str) -> None:
        self.peer = f"{whose(standby)} at {broker.stream.connection.url}/{broker.stream.name}"
        self.link, self.standby = link, standby
        self._broker = broker
        self._head: Head = broker.head
        self._decoder = Decoder()
        self._mail = Mailbox(_ROOM)
        self._given: Message | None = None  # is being received
        self._greets = False  # it has said HELLO
        self.hello: Message | None = None
        self._packer: Packer | None = None
        self._sending = asyncio.Lock()
        self._unread: deque[tuple[str, int]] = deque()  # digest and size of what was not acknowledged
        self._kept = 0
        self._acknowledged = asyncio.Event()

    @property
    def closed(self) -> bool:
        return self._mail.error is not None

    # -- from the standby -------------------------------------------------------------------------

    async def take(self, data: bytes) -> None:
        """A message of NATS has come from the standby."""
        try:
            for message in self._decoder.feed(data):
                if not self._mail.offer(message):
                    raise LinkError(f"{whose(self.standby)} has sent more than was asked for")
            if self._decoder.error:
                raise self._decoder.error
        except LinkError as error:
            await self.close(str(error))

    async def receive(self) -> Message:
        """See `Channel`. Raises: LeaseError: the lease is lost, beside the others."""
        message = self._given = self._given or await self._mail.get()
        match message.kind:
            case Kind.HELLO:
                self._greets = True
                message = await self._greeted(message)
            case Kind.ACK:
                await self._has(str(message.meta.get("digest", "")))
            case Kind.REFUSE:
                if not self._greets:
                    self._broker.refused(self.standby)
                self.fail(LinkError(f"{whose(self.standby)} refuses: {message.meta.get('reason', '')}"))
                assert self._mail.error
                raise self._mail.error
        self._given = None
        return message

    async def _greeted(self, hello: Message) -> Message:
        """A tip is an acknowledgement if it is one that we know, and is withheld if it is none."""
        if tip_of(hello) in self._broker.known:
            await self._has(tip_of(hello))
            return hello
        return Message(hello.kind, {**hello.meta, "tip": None})

    async def _has(self, digest: str) -> None:
        """The standby has an epoch: it is the successor, before anybody may release something for that.

        Raises:
            LinkError: it says so of an epoch that it was not sent.
        """
        known = self._broker.known
        if digest not in known:
            self.fail(LinkError(f"{whose(self.standby)} acknowledges an epoch that it was not sent"))
            assert self._mail.error
            raise self._mail.error
        await self._broker.name(self.standby)
        del known[: known.index(digest)]
        if any(sent == digest for sent, _ in self._unread):
            while self._unread:
                sent, size = self._unread.popleft()
                self._kept -= size
                if sent == digest:
                    break
        self._acknowledged.set()

    # -- to the standby ---------------------------------------------------------------------------

    async def send(self, *messages: Message) -> None:
        """See `Channel`.

        Raises:
            LeaseError: the lease is lost: what is sent is stored nowhere.
            StorageError: the broker has no room for it.
        """
        try:
            async with self._sending:
                for message in messages:
                    if self._mail.error:
                        raise self._mail.error
                    await self._send(message)
        except UffdtrackError as error:
            self.fail(error)
            assert self._mail.error
            raise self._mail.error from error  # the first reason, of which the others may follow
        except BaseException:
            self.fail(LinkError("the link was closed"))
            raise

    async def _send(self, message: Message) -> None:
        stream = self._broker.stream
        if message.kind in (Kind.BEAT, Kind.REFUSE):
            text = json.dumps({"kind": message.kind.name, "meta": dict(message.meta)}).encode()
            with contextlib.suppress(NotNowError):  # another one comes
                beat = message.kind is Kind.BEAT
                await stream.connection.publish(stream.live("beat" if beat else f"down.{self.link}"), text)
            return
        if message.kind is Kind.HELLO:
            self.hello = message
        assert self.hello, "HELLO is the first"
        if not self._packer:
            self._packer = Packer(stream, self.hello, self._room)
        if message.kind is not Kind.HELLO:
            await self._packer.add(message)
        if message.kind not in (Kind.BEGIN, Kind.PART):
            await self._commit(message)

    async def _commit(self, last: Message) -> None:
        """Have the record stored that makes a batch of messages valid; `last` is the last of them."""
        assert self._packer
        batch, body = await self._packer.finish(self.link)
        digest = str(last.meta.get("digest", "")) if last.kind is Kind.END else ""
        self._unread.append((digest, self._packer.size))
        self._packer = None
        if digest:
            self._broker.known.append(digest)  # before: a standby may have it even if we do not learn so
        changes: dict[str, Any] = {"state": State.ENDED} if last.kind is Kind.BYE else {}
        await self._head.write(batch, body, digest, **changes)

    async def _room(self, size: int) -> None:
        """Wait until the broker may keep so much more without dropping what the standby has not read."""
        most = self._broker.max_bytes // 2
        assert self._packer
        if self._packer.size + size + _OVERHEAD > most:
            raise StorageError(
                f"an epoch is larger than half of the {self._broker.max_bytes} bytes that the broker keeps"
            )
        while self._kept + size + _OVERHEAD > most:
            self._acknowledged.clear()
            await self._acknowledged.wait()
            if self._mail.error:
                raise self._mail.error
        self._kept += size

    def fail(self, error: UffdtrackError) -> None:
        """It is of no use any more."""
        self._mail.end(error)
        self._acknowledged.set()
        if self._packer:
            self._packer.cancel()

    async def close(self, reason: str = "") -> None:
        """See `Channel`. The lease is kept; other standbys may be linked."""
        if reason:
            with contextlib.suppress(UffdtrackError, NotNowError):
                await self._send(Message(Kind.REFUSE, {"reason": reason}))
        self.fail(LinkError(reason or "the link was closed"))
        self._broker.seek(self)


class Followers:
    """The standbys that follow and are not linked, by their ids, for `status`: `tips`."""

    def __init__(self, broker: BrokerActive) -> None:
        self._broker = broker
        self._links: dict[str, tuple[str, str, Decoder]] = {}
        self.tips: dict[str, str] = {}
        self.heard: dict[str, float] = {}

    def add(self, link: str, standby: str, stored: str) -> None:
        """Know one that gets what is behind the epoch `stored`."""
        self.remove(standby)
        if len(self._links) >= _MOST_FOLLOWERS:
            self.remove(min(self.heard, key=lambda one: self.heard[one]))
        self._links[link] = standby, stored, Decoder()
        self.tips[standby], self.heard[standby] = "", clock()

    def remove(self, standby: str) -> None:
        self._links = {link: one for link, one in self._links.items() if one[0] != standby}
        self.tips.pop(standby, None)
        self.heard.pop(standby, None)

    def take(self, link: str, data: bytes) -> None:
        """What a follower has sent: only its HELLO, ACK and REFUSE matter."""
        if link not in self._links:
            return
        standby, stored, decoder = self._links[link]
        try:
            messages = decoder.feed(data)
        except LinkError:
            self.remove(standby)
            return
        self.heard[standby] = clock()
        for message in messages:
            if message.kind is Kind.HELLO:
                self.tips[standby] = tip_of(message)
                if tip_of(message) != stored:
                    self._broker.on_base_wanted()
            elif message.kind is Kind.ACK:
                self.tips[standby] = str(message.meta.get("digest", ""))
            elif message.kind is Kind.REFUSE:
                self.remove(standby)
                self._broker.refused(standby)
