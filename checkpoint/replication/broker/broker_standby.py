"""A standby's side of a broker: it follows, and takes the lease when nobody else can hold it.

    async with await BrokerStandby.open(address) as broker:
        following = asyncio.create_task(broker.serve(accept))   # accept(channel), for each link
        ...
        if await broker.fence():                                # at silence, and at GO
            ...                                                 # the guest may run here
            await BrokerActive.open(address, heir_of=broker.give)   # it is replicated again

A channel of a standby that is not linked gives HELLO, epochs and BYE alone; what it sends is for `status`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self

from checkpoint.errors import LeaseError, LinkError
from checkpoint.replication.broker.follower_channel import FollowerChannel
from checkpoint.replication.broker.head import Head
from checkpoint.replication.broker.identity import new_identity
from checkpoint.replication.broker.lease import Holder, State, Watcher, clock
from checkpoint.replication.broker.nats_connection import NatsConnection, NotNowError, until_done
from checkpoint.replication.broker.records import Records
from checkpoint.replication.broker.stream import Stream
from checkpoint.replication.links.address import Address
from checkpoint.replication.links.frames import Kind, Message
from uffdtrack.errors import UffdtrackError

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_AGAIN_SECONDS = 0.1


class BrokerStandby:
    """A standby of a name.

    Attributes:
        me: its id.
        on_lost: called if it has taken the lease, and then somebody else has.
    """

    def __init__(self, connection: NatsConnection, stream: Stream, me: str) -> None:
        """See `open`."""
        self.me = me
        self.on_lost: Callable[[], None] = lambda: None
        self.stream = stream
        self._connection = connection
        self._watcher = Watcher(self.me, clock())
        self._records = Records(stream, self._watcher)
        self._channel: FollowerChannel | None = None
        self._head: Head | None = None
        self._followed = 0  # the number of the active that has answered last
        self._free_to_link = asyncio.Event()
        self._free_to_link.set()

    @classmethod
    async def open(cls, address: Address, me: str = "", tls: ssl.SSLContext | None = None) -> BrokerStandby:
        """Connect.

        Args:
            me: the id that this standby had, if it has only lost its connection for good.

        Raises:
            UnsupportedError, LinkError: see `BrokerActive.open`.
        """
        connection = await NatsConnection.open(f"nats://{address.host}:{address.port}", tls)
        try:
            stream = Stream(connection, address.name)
            made = cls(connection, stream, me or new_identity())
            await connection.subscribe(made.stream.live("beat"), made._beat)
            await connection.subscribe(made.stream.live("down.*"), made._refused)
            await made._start()
        except BaseException:
            await connection.close()
            raise
        return made

    async def _start(self) -> None:
        while True:
            try:
                return await self._records.start()
            except NotNowError:
                await asyncio.sleep(_AGAIN_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Follow no more. A lease that was taken is renewed no more."""
        if self._channel:
            self._channel.mail.end(LinkError("the link was closed"))
        if self._head:
            await self._head.close()
        await self._records.close()
        await self._connection.close()

    async def serve(self, accept: Callable[[FollowerChannel], Awaitable[None]]) -> None:
        """Follow whoever is active, until cancelled.

        Args:
            accept: gets a channel for each link; the channel is closed when it returns.

        Raises:
            LinkError: the connection is closed for good.
        """
        while True:
            channel = self._channel = await self._link()
            self._followed = channel.number
            reading = asyncio.create_task(self._read(channel))
            try:
                await accept(channel)
            finally:
                reading.cancel()
                await channel.close()
                await asyncio.gather(reading, return_exceptions=True)

    async def _link(self) -> FollowerChannel:
        wish = json.dumps({"standby": self.me}).encode()
        while True:
            await self._free_to_link.wait()
            if last := self._ended():
                return last
            try:
                answer = await self._connection.request(self.stream.live("link"), wish)
                channel = FollowerChannel(self.stream, json.loads(answer.data))
                if channel.sequence > self._watcher.sequence:
                    await self._records.look()
                record = self._watcher.record
                known = not record or channel.number >= record.number
                known &= channel.sequence <= self._watcher.sequence  # else the broker has lost it
                if known and self._free_to_link.is_set():
                    self._records.begin(channel.sequence)
                    return channel
            except (NotNowError, ValueError):
                self._records.look_again()  # its last word may have been missed
            except LinkError:  # no answer of an active's, or
                if self._connection.closed:
                    raise
            await self._records.wait(_AGAIN_SECONDS)

    def _ended(self) -> FollowerChannel | None:
        """A channel that gives BYE, if the active that was followed has ended: it answers no more."""
        record, sequence = self._watcher.record, self._watcher.sequence - 1
        if not record or record.state is not State.ENDED or record.number != self._followed:
            return None
        self._records.begin(sequence)
        answer = {
            "link": secrets.token_hex(8),
            "linked": False,
            "number": record.number,
            "sequence": sequence,
        }
        return FollowerChannel(self.stream, answer)

    async def _read(self, channel: FollowerChannel) -> None:
        try:
            while (entry := await self._records.next()).record.holder != self.me:
                await channel.take(entry)
        except UffdtrackError as error:
            channel.mail.end(error)

    async def _beat(self, message: Msg) -> None:
        if self._channel and not self._head:
            self._channel.beat(Message(Kind.BEAT, _meta(message.data)))

    async def _refused(self, message: Msg) -> None:
        channel = self._channel
        if channel and message.subject == self.stream.live(f"down.{channel.link}"):
            channel.mail.end(LinkError(f"the active refuses: {_meta(message.data).get('reason', '')}"))

    async def fence(self) -> bool:
        """Wait until nobody else can hold the lease, and take it; or say whether it is ours still.

        The channel is closed, so nothing is acknowledged any more, and no other one is taken up before this
        has returned; of an active that has resigned it stays, for TAKEN. It waits as long as the broker has
        no leader.

        Returns:
            True: it is ours, and the one before can release nothing any more. False: the active lives, or
            this standby is not its successor.

        Raises:
            LinkError, StorageError: the broker cannot say.
        """
        if self._head:  # the channel stays, for TAKEN
            return not self._head.holder.lost
        self._free_to_link.clear()
        try:
            record = self._watcher.record
            if self._channel and not (record and record.state is State.RESIGNED):
                self._channel.mail.end(LinkError("the lease is being taken"))
            first = self._watcher.sequence
            return await until_done(lambda: self._fence(first), self._connection.url)
        finally:
            if not self._head:
                self._free_to_link.set()

    @property
    def is_successor(self) -> bool:
        """Whether the last record names it. In any thread."""
        return self._watcher.is_successor

    @property
    def only_follows(self) -> bool:
        """Whether another standby is linked."""
        return self._channel is not None and not self._channel.linked

    async def _fence(self, first: int) -> bool:
        """Raises: NotNowError: our claim got no answer; it is waited for the whole lease again."""
        while not self._head:
            now, record = clock(), self._watcher.record
            if not record or not self._watcher.is_successor:
                return False
            is_renewed = self._watcher.sequence != first and record.holder != self.me
            if is_renewed and record.state is not State.RESIGNED:
                return False
            holder = self._watcher.claim(now, record.seconds, standby=True)
            if not holder:
                await self._records.wait(self._watcher.free_at() - now)
                continue
            head = Head(self.stream, holder)
            head.on_lost = self._lost
            try:
                await head.claim()
            except LeaseError:
                await self._look()
            except NotNowError:
                await self._look()
                self._watcher.connected(clock())
                raise
            else:
                self._head = head
        return True

    def _lost(self) -> None:
        if self._head:
            self.on_lost()

    async def _look(self) -> None:
        while True:
            try:
                return await self._records.look()
            except NotNowError:
                await asyncio.sleep(_AGAIN_SECONDS)

    def may_release(self) -> bool:
        """After `fence`: whether output may go out at this moment. Also when the lease was given away."""
        return self._head is not None and self._head.holder.may_release(clock())

    async def give(self) -> Holder:
        """The lease, which is not renewed here any more: whoever gets it does that. After `fence` only.

        A channel of before stays, for TAKEN. Idempotent.
        """
        assert self._head, "fence() first"
        await self._head.close()
        await self._records.close()
        return self._head.holder


def _meta(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return dict(json.loads(data)["meta"])
    return {}
