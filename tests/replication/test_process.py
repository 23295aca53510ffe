"""Epochs of a process at its standby are states that it was in: its own log is the oracle."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.chain import Chain
from checkpoint.errors import StandbyAwayError
from checkpoint.image import EpochFile
from checkpoint.replication import store
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.helpers import Build, Spawn
from tests.kernel.test_oracle import start_writer
from tests.oracle import Memory, OracleError
from tests.replication.pair import active, standby, take
from tests.replication.test_mirror import cut
from uffdtrack.errors import StorageError


def check(directory: Path, number: int, memory: Memory) -> None:
    """The epoch is in the chain already: that of a process is acknowledged when it is on disk."""
    file = EpochFile(directory / f"epoch-{number:08d}.core")
    if file.facts.base:
        memory.pages.clear()
    memory.apply(file)
    memory.check(file)


def test_each_epoch(process_engine: str, spawn: Spawn, build: Build, tmp_path: Path, in_memory: Path) -> None:
    """The link breaks now and then; no base is needed for that."""
    pid, control = start_writer(spawn, build, 2, 3)
    chance, memory = random.Random(3), Memory(control)
    with (
        standby(tmp_path / "s", in_memory / "chain") as far,
        active(tmp_path / "s", "process") as edge,
        ProcessTarget(pid, process_engine) as target,
    ):
        session = Session(target, edge.sink.images, sink=edge.sink)
        for n in range(12):
            row = take(session)
            assert row.base == (not n)
            check(in_memory / "chain", row.epoch, memory)
            if chance.random() < 0.3:
                cut(edge if chance.random() < 0.5 else far)
    assert memory.checked > 500 and memory.deltas
    Chain(in_memory / "chain").verify(b"")


class Net:
    """Notes what a target asks of what holds its packets."""

    def __init__(self) -> None:
        self.stops = 0
        self.safe: list[int] = []

    def mark(self) -> None:
        self.stops += 1

    def taken(self) -> Callable[[], None]:
        stop = self.stops
        return lambda: self.safe.append(stop)


def test_packets_are_let_out_by_the_acknowledgement(
    process_engine: str, spawn: Spawn, build: Build, tmp_path: Path, in_memory: Path
) -> None:
    pid, _ = start_writer(spawn, build, 2, 5)
    with (
        standby(tmp_path / "s", in_memory / "chain") as far,
        active(tmp_path / "s", "process") as edge,
        ProcessTarget(pid, process_engine) as target,
    ):
        net = target.net = Net()
        session = Session(target, edge.sink.images, sink=edge.sink)
        for n in range(3):
            take(session)
            assert net.safe[n:] == [net.stops]
        cut(far)
        with pytest.raises(StandbyAwayError):
            while True:  # until the end of the link is seen
                session.take()
        stops, safe = net.stops, len(net.safe)
        take(session)
        assert net.safe[safe:] == [net.stops] and net.stops > stops


def test_disk_of_the_standby_fails(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be stored is not acknowledged; a base begins the chain anew, and nothing is lost."""
    pid, control = start_writer(spawn, build, 2, 4)
    memory, copy, turns = Memory(control), store._copy, iter(range(1000))

    def failing(incoming: object, path: Path) -> None:
        if next(turns) in (3, 4, 8):
            raise StorageError("the disk is full")
        copy(incoming, path)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_copy", failing)
    bases = 0
    with (
        standby(tmp_path / "s", in_memory / "chain"),
        active(tmp_path / "s", "process") as edge,
        ProcessTarget(pid, "scan") as target,
    ):
        session = Session(target, edge.sink.images, sink=edge.sink)
        for _ in range(12):
            row = take(session)
            bases += row.base
            check(in_memory / "chain", row.epoch, memory)
    assert bases == 3
    Chain(in_memory / "chain").verify(b"")


def test_pages_that_were_not_acknowledged(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: if what a broken link had is not taken back, the oracle sees it."""
    pid, control = start_writer(spawn, build, 2, 5)
    memory = Memory(control)
    with (
        standby(tmp_path / "s", in_memory / "chain") as far,
        active(tmp_path / "s", "process") as edge,
        ProcessTarget(pid, "scan") as target,
    ):
        session = Session(target, edge.sink.images, sink=edge.sink)
        monkeypatch.setattr(target, "take_back", lambda pending: None)
        with pytest.raises(OracleError):
            for _ in range(200):
                check(in_memory / "chain", take(session).epoch, memory)
                cut(far)
