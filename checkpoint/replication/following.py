"""How a standby is reached by actives, and how it becomes the only one that may run the guest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from checkpoint.errors import LinkError
from checkpoint.replication.broker.broker_standby import BrokerStandby
from checkpoint.replication.fence import Command, FileLock
from checkpoint.replication.links import link
from checkpoint.replication.links.address import Address
from checkpoint.replication.links.channel import Channel
from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.links.listener import Listener
from checkpoint.replication.route import HeirRoute, Route

MOST_TOLD = 64
"""So many kinds of refusals are told."""
Accept = Callable[[Channel], Awaitable[None]]


class Following(Protocol):
    """Used in the thread of the link, but for `may_release`."""

    async def serve(self, accept: Accept, tell: Callable[[str], None]) -> None:
        """Give each channel to `accept`, until cancelled. Raises: UffdtrackError: we cannot."""

    def note(self, generation: str) -> None:
        """Of an epoch that has come whole, as the active calls it. Raises: as `check`, once for each."""

    def why_unheard(self) -> str:
        """Why the active does not hear what we ask it, and whom to ask; "": it does, if there is a link."""

    async def fence(self) -> bool | None:
        """Whether the active that was silent can release nothing any more; None: nothing can say so."""

    async def take(self) -> bool:
        """The active has resigned: whether nobody else can run the guest now."""

    @property
    def why_not(self) -> str:
        """Why `fence` may have said no, for people."""

    @property
    def is_successor(self) -> bool | None:
        """Where several follow: whether it is the one that may take over. In any thread."""

    def is_lost(self) -> bool:
        """After one of these: whether another one may run the guest."""

    def check(self) -> None:
        """Whether `take` can be expected to succeed, once the active has resigned. Raises: LinkError: not."""

    def may_release(self) -> bool:
        """After one of these: whether the guest may send something at this moment. In any thread."""

    def onward(self, largest: int) -> Route | None:
        """After one of these: how the guest's next standby is reached; None: it gets none. In any thread.

        Args:
            largest: bytes that a base may have, about.
        """


class DirectFollowing:
    """Listens at an address. `fence`: what the user has named."""

    is_successor = None

    def __init__(
        self,
        address: Address,
        credentials: Credentials | None,
        insecure: bool,
        fence: FileLock | Command | None,
        onward: Route | None = None,
    ) -> None:
        """Args: onward: to the next standby, with the same lock."""
        self._address = address
        self._credentials = credentials
        self._insecure = insecure
        self._fence = fence
        self._onward = onward
        self._generation = ""

    async def serve(self, accept: Accept, tell: Callable[[str], None]) -> None:
        told: set[str] = set()

        def refused(error: LinkError) -> None:
            """Once: who is refused tries again and again, from another port each time."""
            what = re.sub(r":\d+(?=:? )", "", str(error), count=1)
            if what not in told and len(told) < MOST_TOLD:
                told.add(what)
                tell(str(error))

        listener: Listener = await link.listen(
            self._address, self._credentials, accept, refused, self._insecure
        )
        tell(f"listening at {listener.address}")
        if not self._fence and self._address.scheme != "unix":
            tell("without --fence it will not take over from an active that is silent")
        try:
            await asyncio.Event().wait()
        finally:
            await listener.close()

    def note(self, generation: str) -> None:
        if generation != self._generation:
            self._generation = generation
            self.check()

    def why_unheard(self) -> str:
        return ""

    async def fence(self) -> bool | None:
        if isinstance(self._fence, FileLock):
            return self._fence.take_if(self._generation)
        return await self._fence.fence() if self._fence else None

    @property
    def why_not(self) -> str:
        if isinstance(self._fence, FileLock):
            return f"{self._fence.path} is locked, or is not the file that the active has locked"
        return "its command has not ended with 0" if self._fence else "--fence names none"

    async def take(self) -> bool:
        return not isinstance(self._fence, FileLock) or self._fence.take_if(self._generation)

    def check(self) -> None:
        if isinstance(self._fence, FileLock) and not self._fence.says(self._generation):
            raise LinkError(f"the active does not lock {self._fence.path}: both need the same --fence")

    def is_lost(self) -> bool:
        return not self.may_release()

    def may_release(self) -> bool:
        return not isinstance(self._fence, FileLock) or self._fence.is_held

    def onward(self, largest: int) -> Route | None:
        return self._onward


class BrokerFollowing:
    """Follows what a broker carries; its lease says who is active, and who may be next."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._broker: BrokerStandby | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, accept: Accept, tell: Callable[[str], None]) -> None:
        async with await BrokerStandby.open(self._address) as broker:
            self._broker, self._loop = broker, asyncio.get_running_loop()
            tell(f"following {self._address}")
            await broker.serve(accept)

    def note(self, generation: str) -> None:
        """Does nothing: the active names its successor."""

    def why_unheard(self) -> str:
        if self._broker and self._broker.only_follows:
            return "this standby only follows; ask at the active, or at the standby that is linked to it"
        return ""

    async def fence(self) -> bool | None:
        return await self._broker.fence() if self._broker else None

    async def take(self) -> bool:
        return bool(await self.fence())

    def check(self) -> None:
        """Does nothing: the active names its successor."""

    @property
    def why_not(self) -> str:
        return "the lease names another standby as the successor, or none yet"

    @property
    def is_successor(self) -> bool:
        return self._broker is not None and self._broker.is_successor

    def is_lost(self) -> bool:
        """Nobody but a successor can take the lease, and there is none."""
        return False

    def may_release(self) -> bool:
        return self._broker is not None and self._broker.may_release()

    def onward(self, largest: int) -> Route | None:
        assert self._broker and self._loop
        return HeirRoute(self._address, largest, self._broker, self._loop)
