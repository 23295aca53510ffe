"""Very many rollbacks by one session, each compared byte by byte with what was read at its epoch."""

from __future__ import annotations

import os
import random
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from checkpoint.rollback.access import read_remote
from tests.helpers import Build, Spawn, broken
from tests.kernel.rolled import WITHOUT_RSEQ, Rolled
from uffdtrack import PAGE, parse_maps

MANY = int(os.environ.get("UFFDTRACK_ROLLBACKS", "4000"))
PART = 2000
"""Of one process, and one chain."""
PAGES = 256
A_CHAIN = 12
"""Epochs of a chain: each look at one costs what it is long."""
LATEST = 8
"""How many epochs back a rollback goes."""


class Scatter:
    """tests/programs/scatter.c. Its memory is read when it waits for input."""

    def __init__(self, spawn: Spawn, build: Build) -> None:
        self.process: subprocess.Popen[bytes] = spawn(build("scatter"), PAGES, env=WITHOUT_RSEQ, bufsize=0)
        self.pid = self.process.pid
        self._answer()
        self._call = Path(f"/proc/{self.pid}/syscall")
        self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY)
        regions = parse_maps(Path(f"/proc/{self.pid}/maps").read_text())
        self._places = [(r.start, r.size) for r in regions if r.permissions == "rw-p" and r.stored]

    def _answer(self) -> None:
        assert self.process.stdout and self.process.stdout.readline() == b"ready\n"

    def write(self, words: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"%d\n" % words)
        self._answer()

    def memory(self) -> np.ndarray:  # type: ignore[type-arg]
        """All that it can write, once it waits in read(2)."""
        while not self._call.read_text().startswith("0 "):
            time.sleep(0)
        return np.concatenate([
            read_remote(self._memory, np.arange(start // PAGE, (start + size) // PAGE, dtype=np.uint64))[0]
            for start, size in self._places
        ])  # fmt: skip


def roll(scatter: Scatter, directory: Path, engine: str, rounds: int, seed: int, sabotage: str = "") -> None:
    """Raises: AssertionError: a byte is wrong."""
    rng = random.Random(seed)
    with ExitStack() as stack:
        rolled = Rolled(stack, scatter.pid, directory, engine)
        then = {rolled.take().epoch: scatter.memory()}
        if sabotage:
            stack.enter_context(broken(sabotage))
        for n in range(rounds):
            scatter.write(rng.choice((1, 10, 100)))
            if n % -(-rounds // A_CHAIN) == 0:
                kept = scatter.memory()
                then[rolled.take().epoch] = kept
            epoch = rng.choice(list(then)[-LATEST:])
            if rng.randrange(2):
                scatter.write(rng.choice((1, 30)))
            rolled.back_to(epoch)
            assert np.array_equal(scatter.memory(), then[epoch]), f"round {n}, epoch {epoch}"


@pytest.mark.parametrize("engine", ["ring", "scan", "sync"])
def test_rollbacks(kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str) -> None:
    roll(Scatter(spawn, build), in_memory / "c", engine, 30, 1)


@pytest.mark.parametrize(
    ("engine", "sabotage"), [("ring", "forget"), ("scan", "forget"), ("sync", "forget"), ("sync", "rearm")]
)
def test_negative_control(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str, sabotage: str
) -> None:
    """Of few rounds each: later almost all pages were written since an epoch, whatever a look forgets."""
    with pytest.raises(AssertionError, match="round"):
        for seed in range(20):
            roll(Scatter(spawn, build), in_memory / f"c{seed}", engine, 30, seed, sabotage)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, MANY, PART))
@pytest.mark.parametrize("engine", ["ring", "scan", "sync"])
def test_very_many_rollbacks(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str, first: int
) -> None:
    scatter = Scatter(spawn, build)
    roll(scatter, in_memory / "c", engine, min(PART, MANY - first), first)
