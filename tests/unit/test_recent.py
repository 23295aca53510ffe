"""Epochs that are kept in memory, against a model, with as little memory as they may have."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from checkpoint import arena, kept_epoch, recent
from checkpoint.budget import Budget
from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.kept_epoch import FIXED, Index
from checkpoint.recent import RecentSink
from checkpoint.rollback.stored import Image
from checkpoint.sink import ChainSink, make_safe
from tests.unit.histories import PAGES, Memory, Target, epoch_of, memory_of, regions_of, window
from tests.unit.histories import store as store_in_file
from uffdtrack import PAGE, Region, ThreadState, exchange_rows
from uffdtrack.errors import InvalidInputError, StorageError


def taken_rows(sink: RecentSink) -> int:
    rows = np.concatenate([kept.index.rows for kept in sink.kept] or [np.empty(0, np.int64)])
    rows = rows[rows >= 0]
    assert len(np.unique(rows)) == len(rows), "a page has two owners"
    return len(rows)


def run(seed: int, most: int, epochs: int = 60) -> None:
    """Random epochs; some are dropped, some are bases that came in parts.

    Raises:
        AssertionError: a kept epoch is not what it was, or memory is lost.
    """
    target, states = Target(seed), dict[int, Memory]()
    rng = target.rng
    with RecentSink(most) as sink:
        for _ in range(epochs):
            target.work()
            base = not states or rng.random() < 0.1
            draft = sink.begin()
            if base:
                early = target.memory.copy()
                pages = sorted(early)
                draft.add(*_parts(early, pages[: len(pages) // 2]))
                draft.add(*_parts(early, pages))
                target.work()
            taken = target.window()
            held = target.taken()
            row = draft.finish(epoch_of(taken, base))
            if rng.random() < 0.2:
                draft.withdraw()
                target.take_back(held)
                if base:
                    target.pending |= target.memory.keys()
                    target.reset = set(range(PAGES))
                continue
            make_safe([draft])
            draft.committed(last=True)
            states[row.epoch] = dict(target.memory)
            kept = [one.epoch for one in sink.kept]
            assert kept == list(states)[-most:] and row.kept == len(kept)
            assert sink.arena.used == taken_rows(sink) * PAGE
            before = [None, *sink.kept]
            beside = sum(one.beside(last) for one, last in zip(sink.kept, before, strict=False))
            assert sink.size == sink.arena.used + beside
            for number in kept:
                assert memory_of(sink.view(number)) == states[number], f"epoch {number}"
        with pytest.raises(InvalidInputError, match="the session keeps the epochs"):
            sink.view(states and max(states) + 1)


def _parts(memory: Memory, pages: list[int]) -> tuple[object, ...]:
    full = [p for p in pages if any(memory[p])]
    part = window([], full, sorted({*pages} - {*full}), b"".join(memory[p] for p in full))
    return part.data, part.zero, part.contents


@pytest.mark.parametrize("most", [1, 2, 7])
@pytest.mark.parametrize("seed", range(6))
def test_each_epoch_is_what_it_was(seed: int, most: int) -> None:
    run(seed, most)


def test_negative_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that keeps the earlier page must show."""
    monkeypatch.setattr(Index, "update", lambda self, later: later.rows)
    with pytest.raises(AssertionError):
        run(0, 2)


def test_negative_control_of_voided_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view of older pages than the last ones that were void must show; with so many no two become one."""
    monkeypatch.setattr(kept_epoch, "indices_within", lambda pages, runs: np.empty(0, np.int64))
    with pytest.raises(AssertionError):
        run(0, 60)


def test_what_is_in_memory_is_not_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = window(regions_of(PAGES), [0, 1], [2], b"x" * 2 * PAGE)
    made: list[str] = []
    make = os.memfd_create

    def memfd_create(name: str, flags: int) -> int:
        made.append(name)
        return make(name, flags)

    with RecentSink(2) as recents, ChainWriter(tmp_path / "c", b"", force=False) as chain:
        store(recents, 2, 7, base=True)
        store_in_file(ChainSink(chain), taken, base=True)
        monkeypatch.setattr(os, "memfd_create", memfd_create)
        for view, count in ((recents.view(0), 0), (Chain(tmp_path / "c").view(0), 1)):
            with contextlib.closing(Image(view)) as image:
                image.stage(taken.data)
                assert len(made) == count
                assert (image.read(view.pages[:2]) == view.read(view.pages[:2])).all()


def store(sink: RecentSink, pages: int, fill: int, base: bool = False) -> list[str]:
    """Returns the warnings of its row."""
    draft = sink.begin()
    row = draft.finish(
        epoch_of(window(regions_of(PAGES), list(range(pages)), [], bytes([fill]) * pages * PAGE), base)
    )
    draft.committed(last=True)
    return row.warnings


def test_it_keeps_fewer_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "available", lambda: 2 * (40 * PAGE + 40 * FIXED))
    with RecentSink(30) as sink:
        store(sink, 10, 1, base=True)
        said = []
        for n in range(20):
            warnings = store(sink, 5, n + 2)
            assert sink.size <= sink.arena.limit
            said += [f"there is room for {len(sink.kept)} of 30 epochs now" in text for text in warnings]
        assert said == [True]  # once, and it is so
        assert 2 < len(sink.kept) < 15
        assert memory_of(sink.view(20))[0] == bytes([21]) * PAGE
        assert memory_of(sink.view(20))[9] == bytes([1]) * PAGE
        with pytest.raises(StorageError, match="does not fit into memory"):
            store(sink, 96, 99)
        with pytest.raises(InvalidInputError, match="and not 3"):
            sink.view(3)
        assert memory_of(sink.view(None))[0] == bytes([21]) * PAGE
        store(sink, 75, 50, base=True)  # older ones give way
        assert len(sink.kept) == 1 and len(memory_of(sink.view(None))) == 75


def test_nothing_is_said_where_there_is_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "available", lambda: 2 * (40 * PAGE + 40 * FIXED))
    with RecentSink(3) as sink:
        said = store(sink, 10, 1, base=True)
        for n in range(20):
            said += store(sink, 5, n + 2)
        said += store(sink, 75, 50, base=True)  # a base that is alone says nothing of epochs like it
        assert not said


@pytest.mark.parametrize("change", [False, True])
def test_what_is_beside_the_pages_counts(change: bool) -> None:
    """Against what the allocator says, for a process of many mappings; what is the same is there once."""

    def regions() -> list[Region]:
        return [
            Region(n << 20, (n << 20) + PAGE, "rw-p", n, f"00:{n}", 1000 + n, f"/name/of/file {n}")
            for n in range(300, 1300)
        ]

    pages, thread = list(range(500)), ThreadState(7, bytes(216), bytes(2696), 0, False)
    with RecentSink(30) as sink:
        tracemalloc.start()
        same = regions()
        for n in range(20):
            taken = replace(
                window(regions() if change else same, pages, [], bytes([n]) * len(pages) * PAGE),
                threads=[replace(thread, xstate=bytes(2696)) for _ in range(5)],
                heads={("00:1", n): bytes(PAGE)},
            )
            draft = sink.begin()
            draft.finish(epoch_of(taken, not n))
            draft.committed(last=True)
        del draft, taken
        if change:
            del same
        found, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        counted = sink.size - sink.arena.used
        assert found < 1.1 * counted and counted < 1.5 * found + 20 * FIXED, (found, counted)


def test_it_leaves_memory_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "available", lambda: 0)
    with RecentSink(3) as sink, pytest.raises(StorageError, match="make memory available"):
        store(sink, 10, 1, base=True)


@pytest.mark.parametrize(
    ("line", "group", "limit", "used"),
    [
        ("0::/", "", "memory.max", "memory.current"),  # the root of a container's namespace
        ("0::/a/b", "a", "memory.max", "memory.current"),
        ("0::/a/b", "a/b", "memory.high", "memory.current"),
        ("4:cpu:/\n3:hugetlb,memory:/a\n0::/", "memory/a", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("3:memory:/of/the/host", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_what_cgroups_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, group: str, limit: str, used: str
) -> None:
    read = Path.read_text

    def read_text(self: Path) -> str:
        return line if str(self) == "/proc/self/cgroup" else read(self)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(arena, "_CGROUPS", tmp_path)
    monkeypatch.setattr(arena, "_meminfo", lambda name: 1 << 38)
    assert arena.available() == 15 << 34
    directory = tmp_path / group
    directory.mkdir(parents=True, exist_ok=True)
    for name, size in ((limit, 16 << 20), (used, 3 << 20)):
        (directory / name).write_text(f"{size}\n")
    assert arena.available() == 12 << 20
    (directory / "memory.stat").write_text("anon 7\ninactive_file 1048576\n")
    assert arena.available() == 13 << 20
    with arena.Arena(1 << 20) as small:
        assert small.has_room(1)
    (directory / limit).write_text("max\n")
    assert arena.available() == 15 << 34


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_exchanged_where_all_pages_are_known(seed: int) -> None:
    """Against a dict; where one is not there, nothing is changed."""
    random = np.random.default_rng(seed)
    pages = np.unique(random.integers(0, 400 + 4000 * (seed % 2), 300)).astype(np.uint64)
    rows = np.arange(len(pages)) + 1000
    later = np.sort(random.choice(pages, 40, replace=False))
    if seed % 3 == 0:
        gaps = np.setdiff1d(np.arange(5000), pages)  # and what is behind all
        later = np.unique(np.append(later, random.choice(gaps, 2).astype(np.uint64)))
    own = np.arange(len(later)) + 5000
    before, known = (
        dict(zip(pages.tolist(), rows.tolist(), strict=True)),
        dict(zip(later.tolist(), own.tolist(), strict=True)),
    )
    done = exchange_rows(pages, rows, later, own)
    assert done == (known.keys() <= before.keys())
    assert rows.tolist() == [known.get(page, row) if done else row for page, row in before.items()]
    assert own.tolist() == [before[page] if done else row for page, row in known.items()]


def test_where_epochs_are_late_proc_is_read_a_fifth_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    budget = Budget(1 / 10)
    with budget.spending():
        now[0] += 1
    for late, rest in (False, 9), (True, 45):
        budget.behind = late
        now[0] = 1 + rest - 0.1
        assert not budget.is_due()
        now[0] = 1 + rest + 0.1
        assert budget.is_due()
