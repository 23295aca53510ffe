"""An active that connects to a standby, again and again."""

from __future__ import annotations

import asyncio
from typing import Protocol

from checkpoint.replication.active_link import ActiveLink, Owner
from checkpoint.replication.route import Route
from uffdtrack.errors import StorageError, UffdtrackError

AGAIN, LONGEST_REST = 0.2, 10.0
"""Seconds between two attempts to connect: longer where a standby with nothing got no base."""


class Seeker(Owner, Protocol):
    """The edge whose attempts these are.

    Attributes:
        stopped: why no more are made; or "".
        is_bare: the standby that is linked has nothing.
    """

    stopped: str
    is_bare: bool

    def failed(self, error: Exception) -> None:
        """There is no link, or none any more."""

    def unlinked(self) -> None:
        """An attempt is over."""

    async def wait_end(self) -> None: ...


async def seek(owner: Seeker, route: Route) -> None:
    """Serve one link after the other, until the end. Raises: StorageError: trying again does not help."""
    rest = AGAIN
    while not owner.stopped:
        acknowledged = owner.outgoing.acknowledged
        try:
            await _link(owner, route)
        except StorageError:
            raise  # the broker has no room for an epoch
        except (UffdtrackError, OSError) as error:
            owner.failed(error)
        in_vain = owner.is_bare and owner.outgoing.acknowledged == acknowledged
        rest = min(2 * rest, LONGEST_REST) if in_vain else AGAIN
        owner.unlinked()
        await asyncio.sleep(rest)
    await owner.wait_end()


async def _link(owner: Seeker, route: Route) -> None:
    channel = await route.connect()
    try:
        await ActiveLink(owner, channel).serve()
    finally:
        await channel.close()
