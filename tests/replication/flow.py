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
        while self._acknowledged() < until:
            tasks = [asyncio.create_task(self._send(until)), asyncio.create_task(self._receive(until))]
            try:
                await asyncio.gather(*tasks)
            except LinkError:
                await self._link()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _acknowledged(self) -> int:
        return self.active.acknowledged[-1] if self.active.acknowledged else 0

    async def _send(self, until: int) -> None:
        while self.sent < until:
            await self.active.send(self.sent + 1, SIZES[self.sent % len(SIZES)])
            self.sent += 1

    async def _receive(self, until: int) -> None:
        while self._acknowledged() < until:
            await self.active.ack()

    async def _link(self) -> None:
        await self.active.channel.close()
        await self.active.link()
        if self.active.tip:  # it has that one whole, acknowledged or not
            self.sent = int(self.active.tip)
            if self.sent > self._acknowledged():
                self.active.acknowledged.append(self.sent)

    def check(self) -> None:
        """What was acknowledged is there, in order, and each epoch once."""
        epochs, acknowledged = self.standby.epochs, self.active.acknowledged
        assert epochs == sorted(set(epochs))
        assert acknowledged == sorted(set(acknowledged))
        assert set(acknowledged) <= set(epochs)
