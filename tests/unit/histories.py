"""Chains of a memory that is written at random, on a disk that fails."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.elf import Notes
from checkpoint.epoch import Epoch, EpochRow, Times
from checkpoint.facts import TargetFacts
from checkpoint.image import EpochFile
from checkpoint.sink import ChainDraft, ChainSink, make_safe
from checkpoint.view import View
from tests.unit.images import BASE, PROCESS
from uffdtrack import PAGE, Region, Window
from uffdtrack.errors import StorageError
from uffdtrack.runs import expand, to_runs

PAGES = 96
FIRST_PAGE = BASE // PAGE
Memory = dict[int, bytes]
"""Page number relative to BASE -> contents."""


def regions_of(pages: int) -> list[Region]:
    return [Region(BASE, BASE + pages * PAGE, "rw-p", 0, "00:00", 0, "")]


class Target:
    """A memory, and epochs of it as a source would give them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.memory: Memory = {}
        self.pending: set[int] = set()
        self.reset: set[int] = set()
        self.regions = regions_of(PAGES)

    def write(self, page: int) -> None:
        rng, old = self.rng, self.memory.get(page, bytes(PAGE))
        new = bytearray(old)
        kind = rng.choice(("few", "few", "few", "block", "all", "same", "zero", "back", "dense"))
        if kind == "few":
            for _ in range(rng.randint(1, 9)):
                new[rng.randrange(PAGE)] = rng.randrange(256)
        elif kind == "block":
            at = rng.randrange(PAGE - 512)
            new[at : at + 512] = rng.randbytes(512)
        elif kind == "all":
            new[:] = rng.randbytes(PAGE)
        elif kind == "zero":
            new[:] = bytes(PAGE)
        elif kind == "back":  # what it was before, or another page is
            new[:] = self.memory[rng.choice(sorted(self.memory))] if self.memory else new
        elif kind == "dense":
            new[::24] = bytes(b ^ 1 for b in new[::24])
        self.memory[page] = bytes(new)
        self.pending.add(page)

    def work(self) -> None:
        rng = self.rng
        for _ in range(rng.choice((0, 1, 5, 30, 120))):
            self.write(
                min(int(rng.paretovariate(1)) - 1, PAGES - 1) if rng.random() < 0.5 else rng.randrange(PAGES)
            )
        if rng.random() < 0.2:  # given back, or mapped anew
            first = rng.randrange(PAGES)
            for page in range(first, min(PAGES, first + rng.randint(1, 12))):
                self.memory.pop(page, None)
                self.pending.discard(page)
                self.reset.add(page)

    def window(self) -> Window:
        pages = sorted(self.pending)
        full = [p for p in pages if any(self.memory[p])]
        contents = b"".join(self.memory[p] for p in full)
        return window(self.regions, full, sorted({*pages} - {*full}), contents, sorted(self.reset))

    def taken(self) -> tuple[set[int], set[int]]:
        found, self.pending, self.reset = (self.pending, self.reset), set(), set()
        return found

    def take_back(self, taken: tuple[set[int], set[int]]) -> None:
        self.pending |= taken[0] & self.memory.keys()
        self.reset |= taken[1]


def numbers(pages: list[int]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array([FIRST_PAGE + p for p in pages], np.uint64)


def window(
    regions: list[Region], full: list[int], zero: list[int], contents: bytes, reset: list[int] | None = None
) -> Window:
    buffer = np.frombuffer(bytearray(contents), np.uint8)
    return Window(
        regions=regions, threads=[], data=to_runs(numbers(full)), zero=to_runs(numbers(zero)),
        reset=to_runs(numbers(reset or [])), contents=buffer.data, unreadable=0, compared=0, scanned=False,
        touched=0, stop_us=0, harvest_us=0, copy_us=0, rearm_us=0, pause_us=0,
    )  # fmt: skip


def epoch_of(taken: Window, base: bool) -> Epoch:
    row = EpochRow(
        epoch=-1, base=base, pid=7, engine="scan", pages=0, bytes=0, times=Times(0, 0, 0, 0, 0), threads=1
    )  # fmt: skip
    return Epoch(row, taken, Notes([], PROCESS, b""), TargetFacts(PROCESS))


def finish(sink: ChainSink, taken: Window, base: bool = False) -> tuple[ChainDraft, EpochRow]:
    draft = sink.begin()
    return draft, draft.finish(epoch_of(taken, base))


def store(sink: ChainSink, taken: Window, base: bool = False) -> EpochRow:
    draft, row = finish(sink, taken, base)
    make_safe([draft])
    draft.committed(last=True)
    return row


def contents_of(chain: Chain, epoch: int, files: list[EpochFile] | None = None) -> Memory:
    return memory_of(chain.view(epoch, files))


def memory_of(view: View) -> Memory:
    held = view.read(view.pages)
    return {int(p) - FIRST_PAGE: c.tobytes() for p, c in zip(view.pages, held, strict=True)}


def chance_of(fails: float, rng: random.Random, what: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if rng.random() < fails:
            raise OSError(errno.ENOSPC, "no space left")
        return what(*arguments)

    return call


def history(directory: Path, seed: int, monkeypatch: pytest.MonkeyPatch, epochs: int = 60) -> list[Memory]:
    """A chain of a random target on a disk that fails; returns what each epoch of it has."""
    target, rng = Target(seed), random.Random(-seed)
    states: list[Memory] = []
    with ChainWriter(directory, b"", force=False) as chain:
        sink = ChainSink(chain)
        flying: list[tuple[ChainDraft, tuple[set[int], set[int]], Memory]] = []

        def land() -> None:
            make_safe([draft for draft, _, _ in flying])
            for draft, _, memory in flying:
                draft.committed(last=True)
                states.append(memory)
            flying.clear()

        def fail() -> None:
            for draft, taken, _ in reversed(flying):
                draft.withdraw()
                target.take_back(taken)
            flying.clear()
            sink.fall_back()

        for _ in range(epochs):
            target.work()
            base = not states or rng.random() < 0.03
            if base:
                if flying:
                    land()
                target.pending |= target.memory.keys()
                target.reset = set(range(PAGES))
            taken = target.window()
            held = target.taken()
            with monkeypatch.context() as patch:
                if rng.random() < 0.1:
                    patch.setattr(os, "pwritev", chance_of(0.5, rng, os.pwritev))
                try:
                    draft, row = finish(sink, taken, base)
                except StorageError:
                    target.take_back(held)
                    fail()
                    continue
            assert row.pages == len(expand(taken.data)) + len(expand(taken.zero))
            flying.append((draft, held, dict(target.memory)))
            if base or rng.random() < 0.5:
                land()
            elif rng.random() < 0.15:
                fail()
        target.work()
        land()
    return states


def two_epochs(directory: Path, *more: Callable[[bytearray], None]) -> ChainSink:
    """A base, one page written in full, and then as a delta for each function."""
    chain = ChainWriter(directory, b"", force=False)
    sink = ChainSink(chain)
    regions, page = regions_of(PAGES), bytearray(random.Random(1).randbytes(PAGE))
    store(sink, window(regions, [1, 2], [], bytes(page) * 2), base=True)
    store(sink, window(regions, [1], [], bytes(page)))
    for change in more:
        change(page)
        store(sink, window(regions, [1], [], bytes(page)))
    chain.close()
    return sink


def first_byte(page: bytearray) -> None:
    page[0] ^= 255
