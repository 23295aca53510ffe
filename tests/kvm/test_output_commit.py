"""Epochs are dropped at random: the next one that is safe has all output since the last one that was."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from checkpoint.chain_writer import ChainWriter
from checkpoint.epoch import Epoch, EpochRow
from checkpoint.session import Session
from checkpoint.targets.vm import VmTarget
from kvmglue import Order, Outbox, Output, done, open_serial, post, stop, written
from tests.kvm.conftest import Machine, numbers
from uffdtrack import Runs
from uffdtrack.errors import InvalidInputError, StorageError

Make = Callable[..., Machine]
NUMBERS, DROPPED = 1000, 10


@dataclass
class Fails:
    """A sink that fails at random, at any step, or wants a base; it releases output when its epoch is safe.

    Attributes:
        early: it is broken: it releases output when the epoch is written.
        safe: output of the epochs that are safe.
        dropped: epochs that were not stored.
        faults: what must not be, and was.
    """

    outbox: Outbox
    rng: random.Random
    early: bool = False
    safe: Output = field(default_factory=Output)
    dropped: int = 0
    faults: set[str] = field(default_factory=set)
    at_once = quick = False
    arrived: Callable[[], None] = lambda: None

    def follows(self, drain: Callable[[], None]) -> bool:
        return self.rng.random() > 0.05

    def begin(self, base: bool = False) -> Draft:
        self.fail(0.02)
        return Draft(self)

    def fall_back(self) -> None:
        pass

    def fail(self, share: float) -> None:
        if self.rng.random() < share:
            raise StorageError("on purpose")

    def release(self, output: Output) -> None:
        assert self.outbox.release(output.end)


class Draft:
    directory = None
    is_on_its_way = False

    def __init__(self, sink: Fails) -> None:
        self.sink = sink
        self.output: Output | None = None

    def void(self, ranges: Runs) -> None:
        pass

    def add(self, data: Runs, zero: Runs, contents: memoryview) -> None:
        pass

    def finish(self, epoch: Epoch) -> EpochRow:
        self.sink.fail(0.05)
        assert epoch.facts.output
        self.output = epoch.facts.output
        if self.sink.early:
            self.sink.release(self.output)
        return epoch.counted(0, 0, 0)

    def sync(self) -> None:
        self.sink.fail(0.05)

    def name(self) -> None:
        self.sink.fail(0.02)

    def committed(self, last: bool) -> None:
        assert self.output
        try:
            self.sink.safe = self.sink.safe.then(self.output)
        except InvalidInputError:
            self.sink.faults.add("output is missing, or is there twice")
        self.sink.release(self.output)

    def abort(self) -> None:
        self.sink.dropped += 1

    def withdraw(self) -> None:
        """Nobody has seen its output: what was released goes up to the last one that is safe, at most."""
        self.sink.dropped += 1
        ends = zip(self.sink.outbox.released, self.sink.safe.end, strict=True)
        if any(released > safe for released, safe in ends):
            self.sink.faults.add("output of a dropped epoch was released")


def run(made: Machine, out: Path, kind: str, seed: int, early: bool = False) -> Fails:
    """Take epochs into a sink that fails, until enough were dropped."""
    with Outbox(made.vm, open_serial(out)) as outbox, ChainWriter(out.parent / "c", b"", False) as chain:
        sink = Fails(outbox, random.Random(seed), early)
        target = VmTarget(made.vm, made.tracker, kind, outbox)
        describe, over = target.describe, False

        def fails_too(window: object) -> object:
            sink.fail(0.05)  # the window is over, and its epoch not handed over
            return describe(window)  # type: ignore[arg-type]

        target.describe = fails_too  # type: ignore[method-assign, assignment]
        session = Session(target, chain, sink=sink)
        made.vm.resume()
        post(made.vm, 0, Order(kind, pages=8, pace=1))
        while not over and not sink.faults:
            if sink.dropped >= DROPPED and written(made.vm, 0) >= NUMBERS:
                stop(made.vm, 0)
            over = done(made.vm, 0)
            try:
                session.put()
                if over:
                    session.pipeline.drain()
            except StorageError:
                over = False
        with suppress(StorageError):
            session.pipeline.close()
        assert sink.faults or outbox.released == sink.safe.end == outbox.collected
    return sink


@pytest.mark.parametrize(
    "seeds", [pytest.param(1, id="1"), pytest.param(50, id="50", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", ["count", "beacon"])
@pytest.mark.parametrize("engine", ["kvm-bitmap", "scan"])
def test_nothing_is_lost_or_twice(machine: Make, engine: str, kind: str, seeds: int, tmp_path: Path) -> None:
    for seed in range(seeds):
        out = tmp_path / str(seed) / "serial"
        out.parent.mkdir()
        made = machine(engine)
        sink = run(made, out, kind, seed)
        assert sink.dropped >= DROPPED and not sink.faults
        sent = range(1, written(made.vm, 0) + 1)
        if kind == "count":
            assert sink.safe.serial == out.read_bytes() == numbers(len(sent))
        else:
            assert [int.from_bytes(p[14:22], "little") for p in sink.safe.packets] == list(sent)
        made.vm.close()


def test_what_was_released_early_is_noticed(machine: Make, tmp_path: Path) -> None:
    """The control: output is released when an epoch is written, before it is safe."""
    sink = run(machine("kvm-bitmap"), tmp_path / "serial", "count", seed=1, early=True)
    assert "output of a dropped epoch was released" in sink.faults


def test_what_is_not_taken_back_is_noticed(
    machine: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the output of a dropped epoch goes nowhere."""
    monkeypatch.setattr(Outbox, "take_back", lambda outbox, at: None)
    sink = run(machine("kvm-bitmap"), tmp_path / "serial", "count", seed=1)
    assert "output is missing, or is there twice" in sink.faults
