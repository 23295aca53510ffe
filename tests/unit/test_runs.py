"""Sorted ranges and page numbers, against plain sets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.contents import to_runs
from checkpoint.image import expand, inside, latest
from checkpoint.precopy import chunks
from uffdtrack import PAGE, Runs, merge_runs
from uffdtrack._sys import ffi, lib, runs_array, runs_of

RUNS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=30).map(
    lambda pairs: np.array([(a * PAGE, (a + n) * PAGE) for a, n in pairs], np.uint64).reshape(-1, 2)
)


def pages(runs: Runs) -> set[int]:
    return {p for a, b in runs.tolist() for p in range(a // PAGE, b // PAGE)}


@given(RUNS, RUNS)
def test_merge(a: Runs, b: Runs) -> None:
    merged = merge_runs(a, b)
    assert pages(merged) == pages(a) | pages(b)
    assert (merged[1:, 0] > merged[:-1, 1]).all()


@given(RUNS)
def test_expand_and_back(runs: Runs) -> None:
    merged = merge_runs(runs)
    found = expand(merged)
    assert found.tolist() == sorted(pages(runs))
    assert to_runs(found).tolist() == merged.tolist()


@given(RUNS, st.lists(st.integers(0, 250)))
def test_inside(runs: Runs, numbers: list[int]) -> None:
    found = inside(np.array(numbers, np.uint64), runs)
    assert found.tolist() == [n in pages(runs) for n in numbers]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1000))))
def test_latest(entries: list[tuple[int, int]]) -> None:
    keys = np.array([k for k, _ in entries], np.uint64)
    values = np.array([v for _, v in entries], np.int64)
    found_keys, found = latest(keys, values)
    assert dict(zip(found_keys.tolist(), found.tolist(), strict=True)) == dict(entries)
    assert found_keys.tolist() == sorted(dict(entries))


@given(RUNS, st.integers(1, 40))
def test_chunks(runs: Runs, size: int) -> None:
    merged = merge_runs(runs)
    parts = list(chunks(merged, size * PAGE))
    assert all(len(pages(part)) <= size for part in parts)
    assert [p for part in parts for p in sorted(pages(part))] == sorted(pages(runs))


@given(RUNS, st.data())
def test_split_zero(runs: Runs, data: st.DataObject) -> None:
    """Pages with contents move together and keep their order; the others are zero ranges."""
    merged = merge_runs(runs)
    numbers = expand(merged)
    filled = data.draw(st.sets(st.sampled_from(numbers.tolist()))) if len(numbers) else set()
    memory = np.zeros((max(len(numbers), 1), PAGE), np.uint8)
    for i, n in enumerate(numbers.tolist()):
        if n in filled:
            memory[i, n % PAGE] = 1 + n % 255
    source, full, zero = (ffi.new("ut_runs *") for _ in range(3))
    source.v, source.n = runs_of(merged)
    assert lib.ut_split_zero(ffi.from_buffer("uint8_t[]", memory), source, full, zero) == 0
    assert pages(runs_array(full)) == filled
    assert pages(runs_array(zero)) == set(numbers.tolist()) - filled
    for i, n in enumerate(sorted(filled)):
        assert memory[i, n % PAGE] == 1 + n % 255 and np.count_nonzero(memory[i]) == 1
    lib.runs_free(full)
    lib.runs_free(zero)
