"""Every epoch is a state that the process was in; nothing is lost, nothing torn."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.image import EpochFile
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.helpers import Build, Spawn, broken
from tests.oracle import PAGE, Memory, OracleError
from uffdtrack.errors import TargetError

EPOCHS = 30


def start_writer(spawn: Spawn, build: Build, threads: int, seed: int, *more: str) -> tuple[int, int]:
    """A running writer: its pid, and where its log is."""
    process = spawn(build("writer"), threads, seed, "counter", *more)
    assert process.stdout
    address, pid = process.stdout.readline().split()
    return int(pid), int(address, 16)


def take_epochs(
    pid: int, control: int, directory: Path, epochs: int, seed: int, engine: str, sabotage: str = "",
    set_up: Callable[[ProcessTarget], None] = lambda target: None, follow_shared: bool = False,
    bases: bool = False,
) -> Memory:  # fmt: skip
    """Take epochs at random moments and check each one; the moments are made by spinning, not sleeping.

    Args:
        set_up: gets the target behind the base.
        bases: each epoch is a base.
    """
    rng = random.Random(seed)
    memory = Memory(control)
    with ExitStack() as stack:
        chain = stack.enter_context(ChainWriter(directory, b"", force=False))
        target = stack.enter_context(ProcessTarget(pid, engine, follow_shared=follow_shared))
        session = Session(target, chain)
        for n in range(epochs):
            if bases:
                session.stream.rebase()
            row = session.take()
            assert row.epoch == n and row.base == (bases or not n)
            memory.scanned += row.scanned
            if not n:
                set_up(target)
            if n == 1 and sabotage:
                stack.enter_context(broken(sabotage))
            file = EpochFile(directory / f"epoch-{n:08d}.core")
            if row.base:
                memory.pages.clear()  # a base has all
            memory.apply(file)
            memory.check(file)
            for _ in range(rng.choice([0, 0, 1, 10, 100])):
                memory.read(control, 4096)
            if n % 20 == 19:
                remove_old(directory, n)
    return memory


def remove_old(directory: Path, last: int) -> None:
    """The replay has them; the disk need not."""
    for path in directory.glob("epoch-*.core"):
        if int(path.stem.split("-")[1]) < last:
            path.unlink()


def test_every_epoch_is_a_state_of_the_writer(
    kernel: None, process_engine: str, spawn: Spawn, build: Build, in_memory: Path
) -> None:
    pid, control = start_writer(spawn, build, 2, 2)
    memory = take_epochs(pid, control, in_memory / "chain", EPOCHS, 2, process_engine)
    assert memory.checked > EPOCHS * 2 * 8 * 60
    assert memory.deltas > EPOCHS


def test_small_mappings(
    kernel: None, process_engine: str, spawn: Spawn, build: Build, in_memory: Path
) -> None:
    """Those that are compared, as they grow large, are cut, moved and replaced."""
    pid, control = start_writer(spawn, build, 1, 11, "small")
    memory = take_epochs(pid, control, in_memory / "chain", EPOCHS, 11, process_engine)
    assert memory.checked > EPOCHS * 8 * 16


@pytest.mark.slow
@pytest.mark.parametrize("kind", [[], ["small"]], ids=["all", "small"])
@pytest.mark.parametrize("threads", [1, 4])
def test_thousands_of_epochs(
    kernel: None,
    process_engine: str,
    spawn: Spawn,
    build: Build,
    in_memory: Path,
    threads: int,
    kind: list[str],
) -> None:
    """A thousand of each, up to five minutes."""
    pid, control = start_writer(spawn, build, threads, 100 + threads, *kind)
    take_epochs(pid, control, in_memory / "chain", 1000, threads, process_engine)


@pytest.mark.parametrize(
    ("engine", "sabotage"),
    [
        ("scan", "forget"),
        ("scan", "late-rearm"),
        ("ring", "forget"),
        ("ring", "late-rearm"),
        ("ring", "events"),
        ("sync", "forget"),
        ("sync", "events"),
    ],
)
def test_negative_control(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str, sabotage: str
) -> None:
    """With one page forgotten, or one armed again too late, the oracle must see it."""
    pid, control = start_writer(spawn, build, 2, 9)
    with pytest.raises((OracleError, TargetError)):  # sync may come upon a mapping that it was not told of
        take_epochs(pid, control, in_memory / "chain", 500, 9, engine, sabotage)


@pytest.mark.parametrize("sabotage", ["forget", "compare"])
def test_negative_control_of_small_mappings(
    kernel: None,
    process_engine: str,
    spawn: Spawn,
    build: Build,
    in_memory: Path,
    sabotage: str,
) -> None:
    pid, control = start_writer(spawn, build, 1, 9, "small")
    with pytest.raises(OracleError):
        take_epochs(pid, control, in_memory / "chain", 500, 9, process_engine, sabotage)


def test_view_is_the_replay(kernel: None, spawn: Spawn, build: Build, in_memory: Path) -> None:
    """What export and rollback read is what the epochs give one after the other."""
    pid, control = start_writer(spawn, build, 2, 4)
    memory = Memory(control)
    with ChainWriter(in_memory, b"", force=False) as chain, ProcessTarget(pid) as target:
        session = Session(target, chain)
        for _ in range(12):
            session.take()
    whole = Chain(in_memory)
    files = whole.verify(b"")
    for file in files:
        memory.apply(file)
        view = whole.view(file.epoch, files)
        inside = {
            p: memory.pages[p]
            for r in file.regions
            if r.stored
            for p in range(r.start // PAGE, r.end // PAGE)
            if p in memory.pages
        }
        assert set(view.pages.tolist()) == set(inside)
        contents = view.read(view.pages)
        expected = np.frombuffer(b"".join(inside[p] for p in view.pages.tolist()), np.uint8)
        assert (contents.reshape(-1) == expected).all()
