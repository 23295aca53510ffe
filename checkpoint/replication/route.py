"""How an active reaches its standby, and what says that it may be the active."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from checkpoint.errors import LeaseError, LinkError
from checkpoint.replication.broker.broker_active import MAX_BYTES, BrokerActive
from checkpoint.replication.broker.broker_standby import BrokerStandby
from checkpoint.replication.broker.lease import Holder
from checkpoint.replication.fence import FileLock
from checkpoint.replication.links import link
from checkpoint.replication.links.address import Address
from checkpoint.replication.links.channel import Channel
from checkpoint.replication.links.credentials import Credentials
from uffdtrack.errors import InvalidInputError, StorageError, UffdtrackError

AGAIN = 0.2
"""Seconds between two attempts to reach a broker."""


class Route(Protocol):
    """Used in the thread of the link, but for `may_release`."""

    async def open(self, lost: Callable[[], None], base_wanted: Callable[[], None]) -> None:
        """Become the active.

        Args:
            lost: called when another one is.
            base_wanted: called when somebody follows who has not what the next epoch is a child of.

        Raises:
            UffdtrackError: we cannot; it says why.
        """

    async def connect(self) -> Channel:
        """One attempt to reach a standby. Raises: LinkError, and others: there is none."""

    def may_release(self) -> bool:
        """Whether output may go out at this moment. In any thread."""

    def look(self) -> None:
        """Called now and then, to see whether another one is active."""

    def begin(self, generation: str) -> None:
        """A standby gets a base: those that have older epochs may not take over any more.

        Raises:
            LinkError: that cannot be seen to.
        """

    def nobody_may(self) -> bool:
        """Behind `begin`, before anything was acknowledged: whether no standby may take over."""

    def why_lost(self) -> str:
        """Who is active instead of us, as far as is known, for people; ""."""

    async def resign(self) -> None:
        """Be the active no more, for good. Idempotent."""

    async def close(self) -> None: ...


class DirectRoute:
    """A link to one address, and a lock, if the user has named one."""

    def __init__(
        self, address: Address, credentials: Credentials | None, insecure: bool, lock: FileLock | None
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._insecure = insecure
        self._lock = lock
        self._lost: Callable[[], None] = lambda: None

    async def open(self, lost: Callable[[], None], base_wanted: Callable[[], None]) -> None:
        """Raises: InvalidInputError: another one has the lock; others: see `FileLock.take`."""
        self._lost = lost
        if self._lock and not self._lock.take():
            raise InvalidInputError(
                f"{self._lock.path} is locked: another active runs, or a standby that has taken over"
            )

    async def connect(self) -> Channel:
        return await link.connect(self._address, self._credentials, self._insecure)

    def may_release(self) -> bool:
        return not self._lock or self._lock.is_held

    def look(self) -> None:
        if not self.may_release():
            self._lost()

    def begin(self, generation: str) -> None:
        if self._lock:
            try:
                self._lock.write(generation)
            except StorageError as error:
                raise LinkError(str(error)) from error

    def nobody_may(self) -> bool:
        return True

    def why_lost(self) -> str:
        return ""

    async def resign(self) -> None:
        if self._lock:
            self._lock.close()

    async def close(self) -> None:
        await self.resign()


class BrokerRoute:
    """A broker, whose lease says who is active."""

    def __init__(self, address: Address, largest: int) -> None:
        """Args: largest: bytes that a base may have."""
        self._address = address
        self._most = max(MAX_BYTES, 3 * largest)
        self._broker: BrokerActive | None = None

    @property
    def _open(self) -> BrokerActive:
        if not self._broker:
            raise LinkError("the broker is not there yet")
        return self._broker

    async def open(self, lost: Callable[[], None], base_wanted: Callable[[], None]) -> None:
        """Raises: see `BrokerActive.open`."""
        broker = await BrokerActive.open(self._address, self._most)
        broker.on_lost, broker.on_base_wanted = lost, base_wanted
        self._broker = broker

    async def connect(self) -> Channel:
        return await self._open.connect()

    def may_release(self) -> bool:
        return self._broker is not None and self._broker.may_release()

    def look(self) -> None:
        """Does nothing: the broker tells."""

    def begin(self, generation: str) -> None:
        """Does nothing: the lease names the one who may."""

    def nobody_may(self) -> bool:
        """One may be named whose acknowledgement was lost on its last way."""
        return self._open.head.holder.successors == {""}

    def why_lost(self) -> str:
        return self._broker.head.holder.lost if self._broker else ""

    async def resign(self) -> None:
        if self._broker:
            with contextlib.suppress(UffdtrackError):  # the lease ends by itself, and is not renewed
                await self._broker.resign()

    async def close(self) -> None:
        if self._broker:
            await self._broker.close()


class HeirRoute(BrokerRoute):
    """The same, under the lease that a standby of this process has taken.

    The link of an active has a loop and a connection of its own: when that is there, the standby gives the
    lease away.
    """

    def __init__(
        self, address: Address, largest: int, standby: BrokerStandby, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Args: loop: the standby's."""
        super().__init__(address, largest)
        self._standby = standby
        self._loop = loop

    async def open(self, lost: Callable[[], None], base_wanted: Callable[[], None]) -> None:
        """Tries until it succeeds; the standby renews the lease meanwhile. Raises: LeaseError: it is lost."""

        async def give() -> Holder:
            if not self._loop.is_running():
                raise LeaseError("the lease is not renewed any more: the standby's connection has ended")
            giving = asyncio.run_coroutine_threadsafe(self._standby.give(), self._loop)
            return await asyncio.wrap_future(giving)

        while True:
            try:
                broker = await BrokerActive.open(self._address, self._most, heir_of=give)
            except LinkError:
                await asyncio.sleep(AGAIN)
                continue
            broker.on_lost, broker.on_base_wanted = lost, base_wanted
            self._broker = broker
            return

    def may_release(self) -> bool:
        return self._standby.may_release()
