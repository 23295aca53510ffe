"""The event loop of a link's thread."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from checkpoint.replication import loop as module
from checkpoint.replication.loop import LONGEST, RareSelector, new_loop

ROUNDS = 1000
OF_LONGEST = 10
"""So many rounds of a task take as long as sockets are not looked at."""


@contextmanager
def readable() -> Iterator[tuple[asyncio.AbstractEventLoop, int, int]]:
    """A loop, and both ends of a pipe."""
    reader, writer = os.pipe()
    loop = new_loop()
    try:
        yield loop, reader, writer
    finally:
        loop.remove_reader(reader)
        loop.close()
        os.close(reader)
        os.close(writer)


def rounds_until_heard(monkeypatch: pytest.MonkeyPatch) -> int:
    """A task always has something to do; after how many of its rounds is a pipe seen that is readable?"""
    now = time.monotonic()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))

    async def busy(reader: int, writer: int) -> int:
        nonlocal now
        heard = asyncio.Event()
        asyncio.get_running_loop().add_reader(reader, heard.set)
        os.write(writer, b"x")
        for n in range(ROUNDS):
            if heard.is_set():
                return n
            now += LONGEST / OF_LONGEST
            await asyncio.sleep(0)
        return ROUNDS

    with readable() as (loop, reader, writer):
        return loop.run_until_complete(busy(reader, writer))


def test_sockets_are_looked_at_beside_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OF_LONGEST - 3 < rounds_until_heard(monkeypatch) < OF_LONGEST + 6


def test_negative_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", math.inf)
    assert rounds_until_heard(monkeypatch) == ROUNDS


def test_what_has_come_comes_before_timers() -> None:
    """When the loop was late: whoever is to be silent for too long has spoken meanwhile."""
    order: list[str] = []

    async def late(reader: int, writer: int) -> None:
        loop, both = asyncio.get_running_loop(), asyncio.Event()

        def read() -> None:
            order.append("word")
            loop.remove_reader(reader)

        loop.add_reader(reader, read)
        loop.call_later(LONGEST, lambda: (order.append("timer"), both.set()))
        os.write(writer, b"x")
        time.sleep(3 * LONGEST)  # that is what is late
        await both.wait()

    with readable() as (loop, reader, writer):
        for _ in range(10):
            loop.run_until_complete(late(reader, writer))
            os.read(reader, 1)
    assert order == ["word", "timer"] * 10


def test_timers_come_beside_tasks() -> None:
    loop = new_loop()

    async def both() -> None:
        timer = asyncio.create_task(asyncio.sleep(0.001))
        while not timer.done():
            await asyncio.sleep(0)

    loop.run_until_complete(both())
    loop.close()


def test_who_waits_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait with nothing else to do is one look."""
    looks: list[float | None] = []
    select = RareSelector.select

    def noted(self: RareSelector, timeout: float | None = None) -> object:
        looks.append(timeout)
        return select(self, timeout)

    monkeypatch.setattr(RareSelector, "select", noted)
    loop = new_loop()
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    assert [timeout for timeout in looks if timeout] and len(looks) < 6
