"""Epochs that flow through a broker, whatever happens to it."""

from __future__ import annotations

import asyncio

from checkpoint.errors import LinkError
from tests.replication.brokers import Active, Standby

SIZES = [0, 1000, 700_000, 3_000_000]


class Flow:
    """Epochs, sent as fast as they are stored, and links that are taken up again."""

    def __init__(self, active: Active, standby: Standby) -> None:
        self.active, self.standby = active, standby
        self.sent = 0
        self.wanted = asyncio.Event()
        active.broker.on_base_wanted = self.wanted.set

    async def go_on(self, until: int) -> None:
        """Send up to epoch `until`, and have it acknowledged."""
        sending = asyncio.create_task(self._send(until))
        receiving = asyncio.create_task(self._receive(until))
        try:
            await asyncio.gather(sending, receiving)
        finally:
            sending.cancel()
            receiving.cancel()

    async def _send(self, until: int) -> None:
        while self.sent < until:
            try:
                await self.active.send(self.sent + 1, SIZES[self.sent % len(SIZES)])
                self.sent += 1
            except LinkError:
                await self._link()

    async def _receive(self, until: int) -> None:
        while not self.active.acknowledged or self.active.acknowledged[-1] < until:
            try:
                await self.active.ack()
            except LinkError:
                await asyncio.sleep(0.01)  # the sender links anew

    async def _link(self) -> None:
        await self.active.channel.close()
        await self.active.link()
        if self.active.tip:
            self.sent = int(self.active.tip)

    def check(self) -> None:
        """What was acknowledged is there, in order, and each epoch once."""
        epochs, acknowledged = self.standby.epochs, self.active.acknowledged
        assert epochs == sorted(set(epochs))
        assert acknowledged == sorted(set(acknowledged))
        assert set(acknowledged) <= set(epochs)
