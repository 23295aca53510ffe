"""Rollbacks by a session, each compared byte by byte with its epoch, and with the writer's own log."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.errors import RollbackRefusedError
from checkpoint.image import EpochFile
from checkpoint.rollback.in_session import SessionRollback
from checkpoint.rollback.request import Request, fingerprint
from checkpoint.rollback.work import Outcome
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from checkpoint.view import View
from tests.helpers import Build, Spawn, broken, wait_for
from tests.kernel.rollee import differing
from tests.oracle import Memory
from uffdtrack import PAGE, stat_fields

WITHOUT_RSEQ = {**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
"""What the kernel writes to an area of rseq(2), the number of the processor, stays that of now."""


def start_writer(spawn: Spawn, build: Build, threads: int, seed: int) -> tuple[int, int]:
    """tests/programs/writer.c, and where its log is."""
    process = spawn(build("writer"), threads, seed, "counter", "again", env=WITHOUT_RSEQ)
    assert process.stdout
    address, pid = process.stdout.readline().split()
    return int(pid), int(address, 16)


@contextmanager
def held(pid: int) -> Iterator[None]:
    """A process that does not run: what is compared then is what a rollback has left."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: stat_fields(pid)[0] == "T", "it has stopped")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def unlike(a: View, b: View) -> list[str]:
    """Pages of two epochs with other contents; one that an epoch lacks counts as zeros."""
    pages = np.union1d(a.pages, b.pages)
    contents = []
    for view in (a, b):
        out = np.zeros((len(pages), PAGE), np.uint8)
        out[np.isin(pages, view.pages)] = view.read(view.pages)
        contents.append(out)
    return [f"{page * PAGE:#x}" for page in pages[(contents[0] != contents[1]).any(axis=1)].tolist()]


class Rolled:
    """A session on a process, with rollbacks between its epochs."""

    def __init__(
        self, stack: ExitStack, pid: int, directory: Path, engine: str, follow_shared: bool = False
    ) -> None:
        self.pid = pid
        self.directory = directory
        chain = stack.enter_context(ChainWriter(directory, b"", force=False))
        self.target = stack.enter_context(ProcessTarget(pid, engine, follow_shared=follow_shared))
        self.session = Session(self.target, chain)
        self.rollback = SessionRollback(self.session, self.target, directory)

    def take(self) -> EpochFile:
        return EpochFile(self.directory / f"epoch-{self.session.take().epoch:08d}.core")

    def back_to(self, epoch: int, **more: Any) -> Outcome:
        view = Chain(self.directory).view(epoch)
        options = {"anyway": False, "max_stop": 5.0, **more}
        request = Request(self.pid, epoch, view.epoch.digest, fingerprint(view), **options)
        return self.rollback(request, lambda: None)


def roll(
    pid: int, control: int, directory: Path, engine: str, rounds: int, seed: int, sabotage: str = ""
) -> int:
    """Epochs and rollbacks at random; returns how many of these were done. The others were refused, since a
    thread of the epoch has ended.

    Raises:
        AssertionError: a byte is wrong, in the process, or in an epoch after that.
    """
    rng = random.Random(seed)
    memory, done = Memory(control), 0
    states: dict[int, dict[int, bytes]] = {}

    def note(file: EpochFile) -> None:
        memory.apply(file)
        memory.check(file)
        states[file.epoch] = dict(memory.pages)

    with ExitStack() as stack:
        rolled = Rolled(stack, pid, directory, engine)
        note(rolled.take())
        if sabotage:
            stack.enter_context(broken(sabotage))
        for _ in range(rounds):
            for _ in range(rng.randrange(3)):
                note(rolled.take())
            last = rolled.session.sink.tip.number - 1
            epoch = rng.choice([last, rng.randint(max(0, last - 12), last)])
            with held(pid):
                try:
                    rolled.back_to(epoch)
                except RollbackRefusedError as error:
                    assert "ended since and cannot be made again" in str(error), error
                    continue
                done += 1
                view = Chain(directory).view(epoch)
                wrong = differing(pid, view)
                assert not wrong, f"epoch {epoch}: {len(wrong)} pages, {wrong[:3]}"
                file = rolled.take()
                now = Chain(directory).view(file.epoch)
                changed = unlike(view, now)
                assert not changed, f"epoch {file.epoch} is not epoch {epoch}: {changed[:3]}"
            assert file.parent_epoch == epoch
            memory.pages = dict(states[epoch])
            note(file)
    return done
