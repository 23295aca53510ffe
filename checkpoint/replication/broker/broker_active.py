"""The active's side of a broker: it holds the lease, and has a channel to one standby at a time.

    async with await BrokerActive.open(address) as broker:   # waits until the lease is free
        broker.on_lost = ...                                 # somebody else has it: stop, and end
        channel = await broker.connect()                     # the next standby
        ...                                                  # as on any channel
        if broker.may_release(): ...                         # before each piece of output
        await broker.resign()                                # before GO

All standbys read the epochs. One of them is linked: its messages come out of the channel. It becomes the
successor, who alone may take over, when it has all that may have been released: the record names it before
the first ACK is given (or a HELLO whose tip does as one). Until then the one before it stays the successor.
Others follow, and are linked when the channel has been closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self

from checkpoint.errors import LeaseError, LinkError
from checkpoint.replication.broker.broker_channel import BrokerChannel, Followers
from checkpoint.replication.broker.head import Head
from checkpoint.replication.broker.identity import new_identity, whose
from checkpoint.replication.broker.lease import Holder, State, Watcher, clock
from checkpoint.replication.broker.nats_connection import PATIENCE, NatsConnection, NotNowError, until_done
from checkpoint.replication.broker.stream import Stream
from checkpoint.replication.links.address import Address
from uffdtrack.errors import UffdtrackError

if TYPE_CHECKING:
    from nats.aio.msg import Msg

LEASE_SECONDS = 3.0
"""For so long a lease lasts: a standby takes over so long after the last record."""
MAX_BYTES = 1 << 30
"""Of the two streams each, where the server has so much room."""
_STANDBY_SECONDS = 10.0
_REFUSED_SECONDS = 3.0
"""For so long a standby is not answered that does not want to follow us; who asks again does so sooner."""


class BrokerActive:
    """The lease of a name, and what standbys of it are told.

    Attributes:
        on_lost: called once if somebody else has the lease; nothing may be released any more.
        on_base_wanted: called when a standby follows that has not what the next epoch is a child of.
        followers: standbys that are not linked, see `Followers`.
    """

    def __init__(self, connection: NatsConnection, stream: Stream, head: Head, max_bytes: int) -> None:
        """See `open`."""
        self.on_lost: Callable[[], None] = lambda: None
        self.on_base_wanted: Callable[[], None] = lambda: None
        self.stream, self.head, self.max_bytes = stream, head, max_bytes
        self.known: list[str] = []  # digests of the last epoch that was acknowledged, and of those since
        self.followers = Followers(self)
        self.channel: BrokerChannel | None = None
        self._connection = connection
        self._waiting: asyncio.Queue[BrokerChannel] = asyncio.Queue()
        self._working: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._refused: dict[str, float] = {}  # standbys, and when they have refused
        self._ends: list[Callable[[], Awaitable[None]]] = []
        head.on_lost = self._lost

    @classmethod
    async def open(
        cls, address: Address, max_bytes: int = MAX_BYTES, seconds: float = LEASE_SECONDS,
        tls: ssl.SSLContext | None = None, heir_of: Callable[[], Awaitable[Holder]] | None = None,
    ) -> BrokerActive:  # fmt: skip
        """Connect, and take the lease; wait for it if the one before has ended without a word.

        Args:
            address: nats://HOST:PORT/NAME, of any server of the cluster.
            max_bytes: that the broker keeps of records, and of parts, or less if it has not so much room; a
                base has to fit in half of it.
            seconds: that the lease lasts.
            heir_of: the lease was taken by a standby of this process: called when we are connected, it gives
                it away. It is not waited for, and goes on as it is.

        Raises:
            LeaseError: somebody is active under that name.
            UnsupportedError, LinkError, StorageError: there is no such broker, or it has no room.
        """
        connection = await NatsConnection.open(f"nats://{address.host}:{address.port}", tls)
        head: Head | None = None
        try:
            stream = Stream(connection, address.name)
            max_bytes = await until_done(lambda: stream.create(max_bytes), connection.url)
            head = await (_inherited(stream, heir_of) if heir_of else _claimed(stream, seconds))
            made = cls(connection, stream, head, max_bytes)
            await made.start()
        except BaseException:
            if head:
                await head.close()
            await connection.close()
            raise
        return made

    async def start(self) -> None:
        """Answer standbys from now on."""
        self._ends = [
            await self._connection.subscribe(self.stream.live("link"), self._asked),
            await self._connection.subscribe(self.stream.live("up.*"), self._heard),
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Renew the lease no more; it stays ours until it ends. After BYE there is nothing to take over."""
        for end in self._ends:
            await end()
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        if self.channel:
            self.channel.fail(LinkError("the link was closed"))
        await self.head.close()
        await self._connection.close()

    def may_release(self) -> bool:
        """Whether output may go out at this moment, by the lease; false is not lost: it may be renewed."""
        return self.head.holder.may_release(clock())

    async def connect(self) -> BrokerChannel:
        """The channel to the next standby that asks for one, once the one before is closed.

        Raises:
            LinkError: there is none yet.
            LeaseError: the lease is lost.
        """
        self.head.holder.check()
        try:
            async with asyncio.timeout(_STANDBY_SECONDS):
                while True:
                    channel = await self._waiting.get()
                    if channel is self.channel and not channel.closed:
                        return channel
        except TimeoutError as error:
            self.head.holder.check()
            raise LinkError(f"no standby follows {self.stream.name} yet") from error

    async def resign(self) -> None:
        """Give up the lease for good: the successor may take it at once. GO and FINAL can still be sent.

        Raises:
            LeaseError: it was lost.
            LinkError, StorageError: see `Head.write`. Take it for resigned all the same.
        """
        await self.head.write(state=State.RESIGNED)

    async def name(self, standby: str) -> None:
        """Make a standby the successor. Raises: as `resign`."""
        if self.head.holder.record.successor != standby:
            await self.head.write(successor=standby)

    def seek(self, closed: BrokerChannel) -> None:
        """A channel was closed: those that follow are told, when the broker can, that one may be linked."""
        self._spawn(self._seek(closed))

    async def _seek(self, closed: BrokerChannel) -> None:
        with contextlib.suppress(UffdtrackError):
            async with self._one_at_a_time:
                if self.channel is closed:
                    self.channel = None
                    if self.head.holder.record.state is State.HELD:
                        await self.head.write(state=State.SEEKING)

    def refused(self, standby: str) -> None:
        """A standby does not want to follow, as it has epochs of another run: others come first."""
        now = clock()
        self._refused = {one: at for one, at in self._refused.items() if now < at + _REFUSED_SECONDS}
        self._refused[standby] = now

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    def _lost(self) -> None:
        if self.channel and self.head.holder.record.state is not State.RESIGNED:  # TAKEN may come
            self.channel.fail(LeaseError(self.head.holder.lost))
        self.on_lost()

    async def _asked(self, message: Msg) -> None:
        """A standby wants to follow."""
        if not self.head.holder.lost:
            self._spawn(self._answer(message))

    async def _answer(self, message: Msg) -> None:
        try:
            standby = str(json.loads(message.data)["standby"])
        except (ValueError, TypeError, KeyError):
            return  # it is no standby
        if clock() < self._refused.get(standby, -math.inf) + _REFUSED_SECONDS:
            return
        link = secrets.token_hex(8)
        try:
            async with self._one_at_a_time:
                linked = await self._link(link, standby)
                sequence = self.head.holder.sequence
                hello = self.channel.hello if self.channel and not linked else None
        except UffdtrackError:
            return  # who asks hears nothing, and asks again
        answer = {
            "link": link,
            "linked": linked,
            "sequence": sequence,
            "number": self.head.holder.record.number,
            "hello": dict(hello.meta) if hello else None,
        }
        try:
            await self._connection.publish(message.reply, json.dumps(answer).encode())
        except (NotNowError, LinkError):
            return

    async def _link(self, link: str, standby: str) -> bool:
        if self.channel and not self.channel.closed and self.channel.standby != standby:
            self.followers.add(link, standby, self.head.stored)
            return False
        if self.channel:
            self.channel.fail(LinkError(f"{whose(standby)} has linked anew"))
        self.followers.remove(standby)
        self.channel = BrokerChannel(self, link, standby)
        if self.head.holder.record.state is State.SEEKING:
            await self.head.write(state=State.HELD)
        self._waiting.put_nowait(self.channel)
        return True

    async def _heard(self, message: Msg) -> None:
        """A standby has sent something."""
        link = message.subject.rpartition(".")[2]
        if self.channel and self.channel.link == link:
            await self.channel.take(message.data)
        else:
            self.followers.take(link, message.data)


async def _inherited(stream: Stream, give: Callable[[], Awaitable[Holder]]) -> Head:
    """Raises: LeaseError: it is lost."""
    holder = await give()
    holder.check()
    head = Head(stream, holder)
    head.go_on()
    return head


async def _claimed(stream: Stream, seconds: float) -> Head:
    """Wait for the lease, and take it."""
    watcher = Watcher(new_identity(), clock())
    first, begun = 0, clock()

    async def look() -> None:
        last = await stream.last()
        watcher.seen(last.record if last else None, last.sequence if last else 0, clock())

    stream.connection.on_return = lambda: watcher.connected(clock())
    while True:
        await until_done(look, stream.connection.url)
        first = first or watcher.sequence
        if watcher.record and watcher.sequence != first and watcher.free_at() > clock():
            raise LeaseError(
                f"{whose(watcher.record.holder)} is active under the name {stream.name}: end it, or choose "
                "another name"
            )
        holder = watcher.claim(clock(), seconds, standby=False)
        if not holder:
            await asyncio.sleep(min(0.2, max(0.0, watcher.free_at() - clock())))
            continue
        head = Head(stream, holder)
        try:
            await head.claim()
        except LeaseError:  # we see who
            continue
        except NotNowError as error:
            if clock() - begun > PATIENCE:
                raise LinkError(
                    f"the NATS server at {stream.connection.url} stores nothing: {error}"
                ) from error
            watcher.connected(clock())
            first = 0
        else:
            return head
