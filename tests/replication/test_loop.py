"""The event loop of a link's thread."""

from __future__ import annotations

import asyncio
import os

import pytest

from checkpoint.replication import loop as module
from checkpoint.replication.loop import MOST, new_loop

ROUNDS = 1000


def rounds_until_heard() -> int:
    """A task always has something to do; after how many of its rounds is a readable pipe seen?"""
    reader, writer = os.pipe()
    loop = new_loop()
    heard = False

    def hear() -> None:
        nonlocal heard
        heard = True

    async def busy() -> int:
        loop.add_reader(reader, hear)
        os.write(writer, b"x")
        for n in range(ROUNDS):
            if heard:
                return n
            await asyncio.sleep(0)
        return ROUNDS

    try:
        return loop.run_until_complete(busy())
    finally:
        loop.remove_reader(reader)
        loop.close()
        os.close(reader)
        os.close(writer)


def test_sockets_are_looked_at_beside_tasks() -> None:
    assert rounds_until_heard() <= MOST + 2


def test_negative_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", ROUNDS * 2)
    assert rounds_until_heard() == ROUNDS


def test_timers_come_beside_tasks() -> None:
    """And a wait of nothing else ends when it is over."""
    loop = new_loop()

    async def both() -> bool:
        timer = asyncio.create_task(asyncio.sleep(0.001))
        while not timer.done():
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return True

    assert loop.run_until_complete(both())
    loop.close()
