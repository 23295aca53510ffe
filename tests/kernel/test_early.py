"""What is copied before the stop: each epoch has the memory at the stop all the same."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from checkpoint.chain_writer import ChainWriter
from checkpoint.image import EpochFile
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.helpers import Build, Spawn, broken
from tests.kernel.test_oracle import start_writer
from tests.oracle import Memory, OracleError

ENGINES = ["scan", "ring"]


def copy_early(target: ProcessTarget) -> None:
    """From now on a single page is worth a round."""
    target.space.native.early.least = 1  # type: ignore[attr-defined]


def take_epochs(
    pid: int, control: int, directory: Path, epochs: int, engine: str, sabotage: str = ""
) -> Memory:
    memory = Memory(control)
    with ExitStack() as stack:
        chain = stack.enter_context(ChainWriter(directory, b"", force=False))
        target = stack.enter_context(ProcessTarget(pid, engine))
        session = Session(target, chain)
        for n in range(epochs):
            session.take()
            copy_early(target)
            if n == 1 and sabotage:
                stack.enter_context(broken(sabotage))
            path = directory / f"epoch-{n:08d}.core"
            file = EpochFile(path)
            memory.apply(file)
            memory.check(file)
            path.unlink()
    return memory


@pytest.mark.parametrize("engine", ENGINES)
def test_every_epoch_is_a_state_of_the_writer(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str
) -> None:
    pid, control = start_writer(spawn, build, 2, 21)
    with broken("delay"):  # the writer changes mappings and contents that were copied already
        memory = take_epochs(pid, control, in_memory / "chain", 30, engine)
    assert memory.checked > 30 * 2 * 8 * 60


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sabotage", ["early", "forget"])
def test_negative_control(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str, sabotage: str
) -> None:
    """With a page that keeps its early copy, or one that is forgotten, the oracle must see it."""
    pid, control = start_writer(spawn, build, 2, 22)
    with pytest.raises(OracleError):
        take_epochs(pid, control, in_memory / "chain", 500, engine, sabotage)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 4])
def test_thousands_of_epochs(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str, threads: int
) -> None:
    pid, control = start_writer(spawn, build, threads, 200 + threads)
    with broken("delay"):
        take_epochs(pid, control, in_memory / "chain", 1000, engine)
