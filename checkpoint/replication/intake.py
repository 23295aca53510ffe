"""An epoch that has come: verified, and merged, before anybody is told that it is here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from checkpoint.errors import LinkError
from checkpoint.replication.protocol.machine import Epoch
from checkpoint.replication.replica import Received, Replica

LARGE = 4 << 20
"""An image of so many bytes is verified and merged in a thread, while heartbeats go on."""
_ROOM_AGAIN = 0.002


async def take_epoch(
    replica: Replica,
    meta: Mapping[str, Any],
    fits: Callable[[Epoch], bool],
    taken: Callable[[Epoch], Awaitable[object]],
) -> None:
    """All of an epoch has come: make it the replica's last one, if it fits.

    That of a process is on disk then: nothing but its file would be here. That of a VM is in memory.

    Args:
        meta: of the END.
        fits: whether it may be merged.
        taken: acknowledges it; what can be done behind that is.

    Raises:
        LinkError, ImageError: it is not what was sent, does not fit, or cannot be stored; or as `taken`.
    """
    received = await _perhaps_in_thread(replica.coming_bytes, lambda: replica.end(meta))
    epoch = Epoch(received.number, received.digest, "" if received.base else received.parent)
    try:
        while not replica.store.has_room:
            await asyncio.sleep(_ROOM_AGAIN)
        if fits(epoch):
            await _merge(replica, received)
        await taken(epoch)
    finally:
        received.close()
        replica.store.write()


async def _merge(replica: Replica, received: Received) -> None:
    size = received.incoming.size if received.base else 0
    is_vm = received.epoch.facts.vm is not None
    await _perhaps_in_thread(size, lambda: replica.merge(received))
    if not is_vm:
        await asyncio.get_running_loop().run_in_executor(None, replica.store.drain)
        if replica.store.error:
            raise LinkError(f"an epoch cannot be stored: {replica.store.error}")


async def _perhaps_in_thread(size: int, work: Callable[[], Any]) -> Any:
    if size < LARGE:
        return work()
    done = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(done)
    finally:
        while not done.done():  # we are cancelled: it uses what would be closed now
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([done])
