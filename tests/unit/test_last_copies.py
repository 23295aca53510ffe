"""The memory that copies take: by one chain, by several, and what is learnt of their use."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint import last_copies, room
from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.sink import ChainSink
from checkpoint.view import check_all_deltas
from tests.unit.histories import PAGES, contents_of, history, regions_of, store, window
from uffdtrack import PAGE

pytestmark = pytest.mark.usefixtures("little_room")


def held_bytes(sink: ChainSink) -> int:
    copies = sink.copies
    size = len(copies._memory) if copies._memory else 0
    assert size == copies.held * PAGE
    return size


def test_data_that_does_not_compress_gets_few_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with ChainWriter(tmp_path, b"", force=False) as chain:
        sink, regions = ChainSink(chain), regions_of(PAGES)
        held = []
        for n in range(30):
            contents = rng.integers(0, 256, 40 * PAGE, np.uint8).tobytes()
            store(sink, window(regions, list(range(40)), [], contents), base=not n)
            held.append(len(sink.copies._pages))
        assert held[1] == 40 and held[-1] < 10
        assert held_bytes(sink) <= 60 // 16 * PAGE
        page = bytearray(contents)
        for _ in range(60):  # and where they become useful, they come back
            page[::PAGE] = bytes(b ^ 1 for b in page[::PAGE])
            row = store(sink, window(regions, list(range(40)), [], bytes(page)))
        assert row.bytes < 40 * PAGE // 2
    check_all_deltas(Chain(tmp_path).verify(b""))


def test_chains_share_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes gets its share; the others keep the copies that they have room for."""
    monkeypatch.setattr(last_copies, "DEPTH", 100)
    sinks: list[ChainSink] = []
    regions, pages = regions_of(PAGES), list(range(50))
    for n in range(3):
        sinks.append(ChainSink(ChainWriter(tmp_path / str(n), b"", force=False)))
        for epoch in range(5):
            for sink in sinks:
                page = bytes([n * 5 + epoch]).ljust(PAGE, b"a")
                taken = window(regions, pages, [], page * 50)
                row = store(sink, taken, base=not sink.tip.number)
                assert sum(map(held_bytes, sinks)) <= 60 * PAGE
                if n and sink is not sinks[n]:
                    assert row.bytes < (50 - 60 // (n + 1) + 1) * PAGE
        share = min(50, 60 // (n + 1))
        assert [len(sink.copies._pages) for sink in sinks] == [share] * (n + 1)
    for sink in sinks:
        sink.chain.close()
        check_all_deltas(Chain(sink.chain.directory).verify(b""))


def test_a_chain_without_copies_takes_no_share(tmp_path: Path) -> None:
    """A process that has begun with a base leaves those of the others where they are."""
    idle = []
    with ChainWriter(tmp_path / "busy", b"", force=False) as chain:
        sink = ChainSink(chain)
        for n in range(8):
            store(sink, window(regions_of(PAGES), list(range(60)), [], bytes([1]) * (60 * PAGE)), base=not n)
            with ChainWriter(tmp_path / str(n), b"", force=False) as other:
                idle.append(ChainSink(other))
                store(idle[n], window(regions_of(PAGES), [1], [], bytes([1]) * PAGE), base=True)
        assert len(sink.copies._pages) == sink.copies.held == 60


@pytest.mark.parametrize("fails", [0, 1])
def test_no_memory_for_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    """None at all, or no more than some: pages are stored whole."""

    class Little(mmap.mmap):
        def __new__(cls, *arguments: Any) -> Little:
            if not fails:
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            return super().__new__(cls, *arguments)

        def resize(self, size: int) -> None:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(room, "_PIECE", 8)
        patch.setattr(last_copies.mmap, "mmap", Little)
        states = history(tmp_path, 5, patch)
    chain = Chain(tmp_path)
    files = chain.verify(b"")
    check_all_deltas(files)
    assert any(file.deltas for file in files) is bool(fails)
    assert contents_of(chain, len(states) - 1, files) == states[-1]
