"""Rollbacks by a session, each compared byte by byte with its epoch, and with the writer's own log."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.errors import RollbackRefusedError
from checkpoint.image import EpochFile
from checkpoint.recent import RecentSink
from checkpoint.rollback import contents
from checkpoint.rollback.ahead import Ahead
from checkpoint.rollback.in_session import KnownFiles, SessionRollback, Since
from checkpoint.rollback.order import rollback
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.request import Request, fingerprint
from checkpoint.rollback.stored import Image
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from checkpoint.view import View
from tests.helpers import DEADLINE, Build, Spawn, broken, wait_for
from tests.kernel.rollee import differing
from tests.oracle import Memory
from uffdtrack import PAGE, Runs, stat_fields
from uffdtrack.errors import StopTimeoutError, TargetBusyError

WITHOUT_RSEQ = {**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
"""What the kernel writes to an area of rseq(2), the number of the processor, stays that of now."""


def is_of_the_writer(error: RollbackRefusedError) -> bool:
    """Whether a rollback was refused since a thread of the epoch has ended, or a child is there just now."""
    return any(
        text in str(error)
        for text in ("ended since and cannot be made again", "shares memory with processes that would not go")
    )


def start_writer(spawn: Spawn, build: Build, threads: int, seed: int) -> tuple[int, int]:
    """tests/programs/writer.c, and where its log is."""
    process = spawn(build("writer"), threads, seed, "counter", "again", env=WITHOUT_RSEQ)
    assert process.stdout
    address, pid = process.stdout.readline().split()
    return int(pid), int(address, 16)


WRONG = "wrong: "


def wrong(outcome: Outcome) -> list[str]:
    return [text for text in outcome.warnings if text.startswith(WRONG)]


@contextmanager
def held(pid: int) -> Iterator[None]:
    """A process that does not run: what is compared then is what a rollback has left."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: stat_fields(pid)[0] == "T", "it has stopped")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


Held = tuple[Any, Any]


def contents_of(view: View) -> Held:
    """Its page numbers and their contents."""
    return view.pages, view.read(view.pages)


def unlike(a: Held, b: Held) -> list[str]:
    """Pages of two epochs with other contents; one that an epoch lacks counts as zeros."""
    pages = np.union1d(a[0], b[0])
    contents = []
    for known, found in (a, b):
        out = np.zeros((len(pages), PAGE), np.uint8)
        out[np.isin(pages, known)] = found
        contents.append(out)
    return [f"{page * PAGE:#x}" for page in pages[(contents[0] != contents[1]).any(axis=1)].tolist()]


def count_compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pages each comparison of a rollback compares from now on."""
    compared: list[int] = []
    compare = contents.compare_pages

    def count(memory: int, pages: Any, *more: Any) -> Any:
        compared.append(len(pages))
        return compare(memory, pages, *more)

    monkeypatch.setattr(contents, "compare_pages", count)
    return compared


class Rolled:
    """A session on a process, with rollbacks between its epochs."""

    def __init__(
        self,
        stack: ExitStack,
        pid: int,
        directory: Path,
        engine: str,
        follow_shared: bool = False,
        keep: int = 0,
    ) -> None:
        self.pid = pid
        self.directory = directory
        self._files = KnownFiles()
        chain = stack.enter_context(ChainWriter(directory, b"", force=False))
        self.target = stack.enter_context(ProcessTarget(pid, engine, follow_shared=follow_shared))
        self.recent = stack.enter_context(RecentSink(keep)) if keep else None
        self.session = Session(self.target, chain, sink=self.recent)
        self.rollback = SessionRollback(self.session, self.target, directory, self.recent)

    def take(self) -> EpochFile:
        number = self.session.take().epoch
        if self.recent:
            return self.recent.view(number).epoch
        return EpochFile(self.directory / f"epoch-{number:08d}.core")

    def view(self, epoch: int) -> View:
        return self.recent.view(epoch) if self.recent else Chain(self.directory).view(epoch)

    @property
    def epochs(self) -> tuple[int, int]:
        """The first and the last one that there are."""
        if self.recent:
            return self.recent.kept[0].epoch, self.recent.kept[-1].epoch
        return 0, self.session.sink.tip.number - 1

    def back_to(self, epoch: int, **more: Any) -> Outcome:
        """As a user, who tries again where a busy machine lets no thread stop in time."""
        options = {"anyway": False, "max_stop": 5.0, **more}
        if self.recent:
            request = Request(self.pid, epoch, "", "", **options)
        else:
            view = Chain(self.directory, self._files).view(epoch)
            request = Request(self.pid, epoch, view.epoch.digest, fingerprint(view), **options)
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                return self.rollback(request, lambda: None)
            except (StopTimeoutError, TargetBusyError):
                if time.monotonic() > deadline:
                    raise


class Target:
    """A process with some epochs, and who rolls it back."""

    def __init__(
        self, stack: ExitStack, pid: int, directory: Path, by: str = "itself", epochs: int = 1
    ) -> None:
        self.pid, self.directory, self.session = pid, directory, None
        with ExitStack() as own:
            rolled = Rolled(own, pid, directory, "scan" if by == "itself" else by)
            for _ in range(epochs):
                rolled.take()
            if by != "itself":
                self.session = rolled
                stack.push(own.pop_all())

    def back_to(self, epoch: int = 0, anyway: bool = False) -> Outcome:
        if self.session:
            return self.session.back_to(epoch, anyway=anyway)
        return rollback(self.pid, self.view(epoch), anyway)

    def view(self, epoch: int = 0) -> View:
        return Chain(self.directory).view(epoch)


def after_comparison(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something when all was compared, and before the process stands."""
    for kind in (Ahead, Since):
        before = kind.before

        def and_act(self: Any, image: Image, before: Callable[..., Runs | None] = before) -> Runs | None:
            found = before(self, image)
            assert found is not None, "it was compared while it ran"
            act()
            return found

        monkeypatch.setattr(kind, "before", and_act)


def roll(
    pid: int, control: int, directory: Path, engine: str, rounds: int, seed: int, sabotage: str = "",
    keep: int = 0,
) -> int:  # fmt: skip
    """Epochs and rollbacks at random; returns how many of these were done. The others were refused, since a
    thread of the epoch has ended.

    Args:
        keep: the session keeps so many epochs in memory, instead of a chain.

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
        rolled = Rolled(stack, pid, directory, engine, keep=keep)
        note(rolled.take())
        if sabotage:
            stack.enter_context(broken(sabotage))
        for _ in range(rounds):
            for _ in range(rng.randrange(3)):
                note(rolled.take())
            first, last = rolled.epochs
            epoch = rng.choice([last, rng.randint(max(first, last - 12), last)])
            with held(pid):
                try:
                    rolled.back_to(epoch)
                except RollbackRefusedError as error:
                    assert is_of_the_writer(error), error
                    continue
                done += 1
                view = rolled.view(epoch)
                wrong = differing(pid, view)
                assert not wrong, f"epoch {epoch}: {len(wrong)} pages, {wrong[:3]}"
                then = contents_of(view)
                file = rolled.take()
                changed = unlike(then, contents_of(rolled.view(file.epoch)))
                assert not changed, f"epoch {file.epoch} is not epoch {epoch}: {changed[:3]}"
            if not keep:
                assert file.parent_epoch == epoch
                memory.pages = dict(states[epoch])
            note(file)
    return done
