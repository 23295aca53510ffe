"""Epochs on their way to another host: each is safe when it has arrived, whatever happens before or after."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from checkpoint import sink
from checkpoint.errors import StandbyAwayError
from checkpoint.pipeline import Pipeline
from checkpoint.replication.links.frames import Kind, Message
from checkpoint.replication.outgoing import Outgoing
from tests.helpers import DEADLINE
from tests.unit.test_pipeline import Fake, World


class Far(Fake):
    """An epoch that is safe when another host has it."""

    def __init__(self, world: World) -> None:
        super().__init__(world, False)
        self.come, self.told = threading.Event(), threading.Event()

    @property
    def is_on_its_way(self) -> bool:  # type: ignore[override]
        return not self.come.is_set()

    def sync(self) -> None:
        assert self.come.wait(DEADLINE)
        super().sync()


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, Pipeline]]:
    monkeypatch.setattr(sink, "sync_directory", lambda _: None)
    world, pipeline = World(1, 0.0), Pipeline()
    pipeline.here = True
    pipeline.tell = lambda epoch: epoch.told.set()
    yield world, pipeline
    pipeline.close()


def arrive(pipeline: Pipeline, epoch: Far) -> None:
    epoch.come.set()
    pipeline.arrived()


def test_each_is_safe_when_it_has_arrived(link: tuple[World, Pipeline]) -> None:
    """Those behind it may still be on their way."""
    world, pipeline = link
    epochs = [Far(world) for _ in range(5)]
    for epoch in epochs:
        pipeline.put(epoch)
    for n, epoch in enumerate(epochs):
        assert world.safe == epochs[:n]
        arrive(pipeline, epoch)
        assert epoch.told.wait(DEADLINE)


def test_one_that_arrives_before_it_counts_as_written(
    link: tuple[World, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has looked for it, and found nothing; it is safe all the same."""
    world, pipeline = link
    looked = threading.Event()
    wait, write = pipeline._to_sync.wait, Fake.write  # type: ignore[attr-defined]

    def waits(timeout: float | None = None) -> bool:
        looked.set()
        return wait(timeout)

    def written(epoch: Far) -> Sequence[Any]:
        looked.clear()
        arrive(pipeline, epoch)
        assert looked.wait(DEADLINE)
        return write(epoch)

    monkeypatch.setattr(pipeline._to_sync, "wait", waits)
    monkeypatch.setattr(Fake, "write", written)
    for _ in range(50):
        epoch = Far(world)
        pipeline.put(epoch)
        assert epoch.told.wait(DEADLINE)


def test_they_arrive_at_any_time(link: tuple[World, Pipeline]) -> None:
    """Of each it is told, and in their order."""
    world, pipeline = link
    epochs = [Far(world) for _ in range(400)]
    sent: queue.SimpleQueue[Far] = queue.SimpleQueue()
    far = threading.Thread(target=lambda: [arrive(pipeline, sent.get()) for _ in epochs])
    far.start()
    for epoch in epochs:
        pipeline.make_room()
        sent.put(epoch)
        pipeline.put(epoch)
    far.join()
    for epoch in epochs:
        assert epoch.told.wait(DEADLINE)
    assert world.safe == epochs


def test_who_waits_for_all_waits_for_what_is_on_its_way(link: tuple[World, Pipeline]) -> None:
    world, pipeline = link
    epoch = Far(world)
    pipeline.put(epoch)
    far = threading.Thread(target=lambda: arrive(pipeline, epoch))
    far.start()
    pipeline.drain()
    assert world.safe == [epoch]
    far.join()


class Announced(Fake):
    """An epoch that goes to a link."""

    def __init__(self, world: World, outgoing: Outgoing) -> None:
        super().__init__(world, False)
        self.told = threading.Event()
        self.outgoing = outgoing
        self.ticket = outgoing.announce(outgoing.life, "digest", 0, 1, (0, 0), Message(Kind.END))

    @property
    def is_on_its_way(self) -> bool:  # type: ignore[override]
        return self.outgoing.is_on_its_way(self.ticket)

    def sync(self) -> None:
        self.outgoing.wait(self.ticket)


@pytest.fixture
def outgoing(link: tuple[World, Pipeline]) -> Outgoing:
    """It is linked, and tells the pipeline."""
    made = Outgoing(lambda: None)
    made.link(frozenset())
    made.arrived = link[1].arrived
    return made


@pytest.fixture
def looked(link: tuple[World, Pipeline], monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released whenever the thread that makes epochs safe has found none that is due, and waits."""
    pipeline, released = link[1], threading.Semaphore(0)
    wait = pipeline._to_sync.wait

    def noted(timeout: float | None = None) -> bool:
        if pipeline._written:
            released.release()
        return wait(timeout)

    monkeypatch.setattr(pipeline._to_sync, "wait", noted)
    return released


def put(pipeline: Pipeline, epoch: Announced, looked: threading.Semaphore) -> None:
    """Put one epoch; the thread that makes it safe waits when this returns, and nothing else wakes it."""
    pipeline.put(epoch)
    pipeline.arrived()  # of another one
    assert looked.acquire(timeout=DEADLINE)


def test_an_acknowledgement_makes_it_safe(
    link: tuple[World, Pipeline], outgoing: Outgoing, looked: threading.Semaphore
) -> None:
    world, pipeline = link
    epoch = Announced(world, outgoing)
    put(pipeline, epoch, looked)
    assert outgoing.acknowledge("digest")
    assert epoch.told.wait(DEADLINE)


@pytest.mark.parametrize("again", [False, True])
def test_a_link_that_goes_makes_it_fail(
    link: tuple[World, Pipeline], outgoing: Outgoing, looked: threading.Semaphore, again: bool
) -> None:
    """The session is woken. `again`: another link is there before the thread has looked."""
    world, pipeline = link
    failed = threading.Event()
    pipeline.wake = failed.set
    put(pipeline, Announced(world, outgoing), looked)
    if again:
        outgoing.arrived = lambda: None
        outgoing.unlink("it has gone")
        outgoing.link(frozenset())
        pipeline.arrived()
    else:
        outgoing.unlink("it has gone")
    assert failed.wait(DEADLINE)
    assert not world.safe
    with pytest.raises(StandbyAwayError):
        pipeline.check()


def test_who_waits_for_all_hurries(link: tuple[World, Pipeline], looked: threading.Semaphore) -> None:
    """Written epochs that would wait for others to become safe with them."""
    world, pipeline = link
    pipeline.durable = 1e6
    epochs = [Far(world) for _ in range(5)]
    for epoch in epochs:
        epoch.come.set()
        pipeline.put(epoch)
        assert looked.acquire(timeout=DEADLINE)
    assert not world.safe
    pipeline.drain()
    assert world.safe == epochs
