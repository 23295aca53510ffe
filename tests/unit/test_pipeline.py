"""Epochs on their way to a disk that fails at any step, against a model of the target's memory."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from checkpoint import pipeline as module
from checkpoint import sink
from checkpoint.pipeline import BUFFERS, TOGETHER, Pipeline
from uffdtrack.errors import OutputError, StorageError

PAGES = 40


class World:
    """A memory that is written, a disk that fails by chance, and the epochs that are safe."""

    def __init__(self, seed: int, failures: float) -> None:
        self.rng = random.Random(seed)
        self.failures = failures
        self.lock = threading.Lock()
        self.memory = [0] * PAGES
        self.pending: set[int] = set()
        self.held = 0
        self.most_held = 0
        self.forgetful = False
        # What a reader of the disk sees: names, and, of those, what is safe.
        self.named: list[Fake] = []
        self.safe: list[Fake] = []
        self.written = 0

    def fails(self, where: str) -> None:
        with self.lock:
            if self.rng.random() < self.failures:
                raise StorageError(where)

    def write(self) -> None:
        for _ in range(self.rng.randrange(6)):
            page = self.rng.randrange(PAGES)
            self.memory[page] += 1
            self.pending.add(page)

    def take(self, base: bool = False) -> Fake:
        return Fake(self, base)

    def stored(self) -> list[int]:
        found = [0] * PAGES
        for epoch in self.safe:
            for page, value in epoch.contents.items():
                found[page] = value
        return found


class Fake:
    """An epoch, and its own draft."""

    directory = Path("/")
    is_on_its_way = False

    def __init__(self, world: World, base: bool) -> None:
        self.world = world
        self.base = base
        self.size = 1
        self.at_once = False
        self.taken = module.time.perf_counter()
        self.contents = {page: world.memory[page] for page in world.pending}
        self.memory = list(world.memory)
        self.whole = self.is_safe = False
        world.pending = set()
        world.held += 1
        world.most_held = max(world.held, world.most_held)

    def release(self) -> None:
        with self.world.lock:
            self.world.held -= not self.whole
            self.whole = True

    def write(self) -> Sequence[Any]:
        try:
            self.world.fails("write")
        finally:
            self.release()
        self.world.written += 1
        return [self]

    def sync(self) -> None:
        self.world.fails("sync")

    def name(self) -> None:
        self.world.fails("name")
        self.world.named.append(self)

    def commit(self, last: bool) -> None:
        self.world.fails("commit")
        self.is_safe = True
        self.world.safe.append(self)
        assert self.world.named[: len(self.world.safe)] == self.world.safe
        # Each epoch with those before it is the memory of its instant, whatever has failed before.
        assert self.world.stored() == self.memory

    def drop(self) -> None:
        self.release()
        if not self.is_safe and self in self.world.named:
            assert self.world.named.pop() is self

    def take_back(self) -> None:
        assert not self.is_safe
        if not self.world.forgetful:
            self.world.pending |= self.contents.keys()


def run(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    durable: float | None = None,
    together: bool = False,
) -> int:
    """Take epochs, with whatever fails; returns how many times something has.

    Args:
        together: as an epoch is kept in memory; some come in series.
    """
    monkeypatch.setattr(sink, "sync_directory", lambda _: world.fails("directory"))
    pipeline, failed = Pipeline(), 0
    pipeline.durable, pipeline.together = durable, together
    for n in range(300):
        world.write()
        try:
            pipeline.make_room()
            epoch = world.take(base=n % 50 == 0)
            epoch.at_once = together and n % 8 == 0 and pipeline.is_idle
            pipeline.put(epoch)
            if world.rng.random() < 0.05:
                pipeline.drain()
        except StorageError:
            failed += 1
    world.failures = 0.0
    while True:
        try:
            pipeline.put(world.take())
            pipeline.close()
            break
        except StorageError:
            failed += 1
    assert world.stored() == world.memory and world.held == 0
    return failed


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("durable", "together"), [(None, False), (0.002, False), (None, True)])
def test_nothing_is_lost_whatever_fails(
    monkeypatch: pytest.MonkeyPatch, seed: int, durable: float | None, together: bool
) -> None:
    world = World(seed, 0.03)
    assert run(world, monkeypatch, durable, together) > 3
    assert len(world.safe) > 5  # a failure drops all that waits behind it
    assert world.most_held <= (TOGETHER if together else BUFFERS) + 1


@pytest.mark.parametrize("together", [False, True])
def test_negative_control(monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    """What was dropped is not taken back: the model objects."""
    world = World(1, 0.03)
    world.forgetful = True
    with pytest.raises(AssertionError):
        run(world, monkeypatch, together=together)


def test_without_threads_all_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLIMIT_NPROC, pids.max."""

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    monkeypatch.setattr(sink, "sync_directory", lambda _: None)
    world, pipeline = World(1, 0.0), Pipeline()
    for n in range(3):
        world.write()
        pipeline.put(world.take())
        assert len(world.safe) == n + 1


def test_epochs_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until half of the time is over, or somebody waits; then one step for all of them."""
    steps = []
    monkeypatch.setattr(sink, "sync_directory", lambda _: steps.append("directory"))
    world, pipeline = World(1, 0.0), Pipeline()
    pipeline.durable = 1000.0
    told: list[Any] = []
    pipeline.tell = told.append
    epochs = [world.take() for _ in range(5)]
    for epoch in epochs:
        pipeline.put(epoch)
    assert not world.safe
    pipeline.close()
    assert told == world.safe == epochs and steps == ["directory"]


def test_a_stop_waits_for_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "sync_directory", lambda _: None)
    world, pipeline = World(1, 0.0), Pipeline()
    gate, write = threading.Event(), Fake.write
    monkeypatch.setattr(Fake, "write", lambda self: (gate.wait(60), write(self))[1])
    for _ in range(BUFFERS):
        assert pipeline.make_room() < 60e6
        pipeline.put(world.take())
    entered = threading.Event()
    waits = pipeline._changed.wait  # type: ignore[attr-defined]

    def wait(timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread():
            entered.set()
        return waits(timeout)

    monkeypatch.setattr(pipeline._changed, "wait", wait)
    opener = threading.Thread(target=lambda: (entered.wait(60), gate.set()))
    opener.start()
    pipeline.make_room()  # it would never return if it had not to wait: nobody else opens the gate
    assert entered.is_set() and world.written
    opener.join()
    pipeline.close()


def test_a_row_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The epochs are safe, the session hears of it, and is woken."""
    monkeypatch.setattr(sink, "sync_directory", lambda _: None)
    world, pipeline = World(1, 0.0), Pipeline()
    woken = threading.Event()
    pipeline.wake = woken.set

    def tell(_: Any) -> None:
        raise OutputError("nobody reads")

    pipeline.tell = tell
    pipeline.put(world.take())
    assert woken.wait(60)
    with pytest.raises(OutputError):
        pipeline.check()
    pipeline.tell = lambda _: None
    pipeline.put(world.take())
    pipeline.close()
    assert len(world.safe) == 2
