"""Chains with branches, of a target whose tracker tells no more than it has to."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.objects import Snapshot
from checkpoint.rollback.apart import apart
from checkpoint.sink import ChainSink
from tests.unit.histories import FIRST_PAGE, Memory, regions_of, store, window
from uffdtrack import PAGE, Pending
from uffdtrack.runs import expand

PAGES = 24
VALUES = [bytes([n]) * PAGE for n in range(4)]
"""Few, so that contents come again."""


class Tracked:
    """A memory, its chain, and a tracker that tells of a page only if it has changed since the last epoch."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.chain = ChainWriter(directory, b"", force=False)
        self.sink = ChainSink(self.chain)
        self.memory: Memory = {}
        self.seen: Memory = {}
        self.pending = Pending()
        self.states: list[Memory] = []
        self.parents: list[int] = []
        self.based = False

    def work(self) -> None:
        """Write pages, give some back, or make them what they were when the last epoch was taken."""
        for _ in range(self.rng.choice((0, 1, 3, 8))):
            page = self.rng.randrange(PAGES)
            wanted = self.rng.choice((None, self.rng.choice(VALUES), self.seen.get(page)))
            if wanted is None:
                self.memory.pop(page, None)
            else:
                self.memory[page] = wanted

    def take(self) -> int:
        memory, seen = self.memory, {} if not self.based else self.seen
        pending = {int(page) - FIRST_PAGE for page in expand(self.pending.pages)}
        void = {int(page) - FIRST_PAGE for page in expand(self.pending.reset)}
        written = {page for page in memory if seen.get(page) != memory[page]} | (pending & memory.keys())
        void |= (seen.keys() | pending) - memory.keys()
        if not self.based:
            void = set(range(PAGES))
        full = sorted(page for page in written if any(memory[page]))
        contents = b"".join(memory[page] for page in full)
        taken = window(regions_of(PAGES), full, sorted(written - {*full}), contents, sorted(void))
        self.parents.append(self.sink.tip.parent)
        row = store(self.sink, taken, base=not self.based)
        self.based = True
        self.seen, self.pending = dict(memory), Pending()
        self.states.append(dict(memory))
        assert row.epoch == len(self.states) - 1
        return row.epoch

    def roll_back(self, epoch: int) -> None:
        """As a session does it."""
        files = Chain(self.chain.directory).files()
        known = apart(files, self.sink.tip.parent, epoch) if self.based else None
        self.memory = dict(self.states[epoch])
        if known:
            self.pending.merge(known.pending)
        else:
            self.based = False
        file = next(file for file in files if file.epoch == epoch)
        self.sink.follow(epoch, file.digest, Snapshot())


def grow(
    directory: Path,
    seed: int,
    epochs: int,
    breaking: AbstractContextManager[object] | None = None,
    often: float = 0.4,
) -> Tracked:
    """A chain with rollbacks to random epochs, and a base now and then."""
    target = Tracked(directory, seed)
    rng = target.rng
    target.work()
    target.take()
    with breaking or nullcontext():
        while len(target.states) < epochs:
            while rng.random() < often:
                target.roll_back(rng.randrange(len(target.states)))
                if rng.random() < 0.5:
                    target.work()
            if rng.random() < 0.03:
                target.based = False
            target.work()
            target.take()
    target.chain.close()
    return target


def without_zeros(memory: Memory) -> Memory:
    """A page of zeros is as good as none."""
    return {page: contents for page, contents in memory.items() if any(contents)}
