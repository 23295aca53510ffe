"""What is copied before the stop: each epoch has the memory at the stop all the same."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.helpers import Build, Spawn, broken
from tests.kernel.test_oracle import start_writer, take_epochs
from tests.oracle import OracleError

ENGINES = ["scan", "ring"]


def copy_early(target: ProcessTarget) -> None:
    """From now on a single page is worth a round."""
    target.space.native.early.least = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_epoch_is_a_state_of_the_writer(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str
) -> None:
    pid, control = start_writer(spawn, build, 2, 21)
    with broken("delay"):  # the writer changes mappings and contents that were copied already
        memory = take_epochs(pid, control, in_memory / "chain", 30, 21, engine, set_up=copy_early)
    assert memory.checked > 30 * 2 * 8 * 60


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sabotage", ["early", "forget"])
def test_negative_control(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str, sabotage: str
) -> None:
    """With a page that keeps its early copy, or one that is forgotten, the oracle must see it."""
    pid, control = start_writer(spawn, build, 2, 22)
    with pytest.raises(OracleError):
        take_epochs(pid, control, in_memory / "chain", 500, 22, engine, sabotage, copy_early)


def test_what_is_armed_just_before_the_stop_is_copied_in_it(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path
) -> None:
    """Negative control: where it is not, the oracle must see it. "scan" finds all in the stop."""
    pid, control = start_writer(spawn, build, 2, 23)
    with pytest.raises(OracleError):
        take_epochs(pid, control, in_memory / "chain", 500, 23, "ring", "due")


def torn(spawn: Spawn, build: Build, directory: Path, engine: str, base: bool, sabotage: str) -> int:
    """How many of some epochs have a buffer of two reads: a stop lets each read end.

    Args:
        base: all of them are bases.
    """
    data = directory / "data"
    data.write_bytes(b"".join(bytes([k + 2]) * (4 << 20) for k in range(8)))
    process = spawn(build("direct"), data)
    assert process.stdout
    address = process.stdout.readline()
    if not address:
        pytest.skip("this file system has no O_DIRECT")
    buffer = int(address, 16) // 4096
    pages = np.arange(buffer, buffer + 1024, dtype=np.uint64)
    found = 0
    with (
        ChainWriter(directory / "chain", b"", force=False) as chain,
        ProcessTarget(process.pid, engine) as target,
        ExitStack() as stack,
    ):
        session = Session(target, chain)
        session.take()
        copy_early(target)
        if sabotage:
            stack.enter_context(broken(sabotage))
        for _ in range(12 if base else 40):
            if base:
                session.stream.rebase()
            session.take()
            view = Chain(directory / "chain").view(None)
            found += len(set(view.read(pages)[:, 0].tolist())) > 1
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("base", [False, True], ids=["", "base"])
def test_a_read_past_the_page_cache_is_whole(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, engine: str, base: bool
) -> None:
    """It writes without a fault what it has pinned: pages are copied when no such call is left."""
    assert not torn(spawn, build, tmp_path, engine, base, "")


@pytest.mark.slow
def test_a_read_past_the_page_cache_is_noticed(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path
) -> None:
    """Negative control: copied at once."""
    places = [tmp_path / str(n) for n in range(30)]
    for place in places:
        place.mkdir()
    assert any(torn(spawn, build, place, "scan", False, "barrier") for place in places)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 4])
def test_thousands_of_epochs(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str, threads: int
) -> None:
    pid, control = start_writer(spawn, build, threads, 200 + threads)
    with broken("delay"):
        take_epochs(pid, control, in_memory / "chain", 1000, threads, engine, set_up=copy_early)
