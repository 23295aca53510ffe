"""Sorted ranges and page numbers, against plain sets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from uffdtrack._sys import ffi, lib, runs_array, runs_of
from uffdtrack.runs import (
    PAGE,
    Pages,
    Runs,
    batches,
    between,
    chunks,
    expand,
    index_of,
    inside,
    intersect,
    latest,
    merge_runs,
    no_runs,
    page_runs,
    rows_of,
    run_starts,
    size_of,
    slices,
    subtract,
    to_runs,
)

FAR = (1 << 47) // PAGE
"""Numbers near the end of a process's addresses, too: nothing may be done in 32 bits, or in floats."""
NUMBER = st.integers(0, 200) | st.integers(FAR - 200, FAR - 20)
RUNS = st.lists(st.tuples(NUMBER, st.integers(1, 20)), max_size=30).map(
    lambda pairs: np.array([(a * PAGE, (a + n) * PAGE) for a, n in pairs], np.uint64).reshape(-1, 2)
)
SORTED = RUNS.map(merge_runs)
NUMBERS = st.lists(NUMBER).map(lambda numbers: np.array(numbers, np.uint64))
PAGES = NUMBERS.map(np.unique)


def pages(runs: Runs) -> set[int]:
    return {p for a, b in runs.tolist() for p in range(a // PAGE, b // PAGE)}


def is_sorted(runs: Runs) -> bool:
    """Sorted, and without overlaps."""
    return bool((runs[:, 0] < runs[:, 1]).all() and (runs[1:, 0] >= runs[:-1, 1]).all())


@given(RUNS, RUNS)
def test_merge(a: Runs, b: Runs) -> None:
    merged = merge_runs(a, b)
    assert pages(merged) == pages(a) | pages(b)
    assert (merged[1:, 0] > merged[:-1, 1]).all()
    assert size_of(merged) == len(pages(merged)) * PAGE
    assert merged.dtype == np.uint64


@given(SORTED, SORTED)
def test_subtract_and_intersect(a: Runs, b: Runs) -> None:
    for found, wanted in (
        (subtract(a, b), pages(a) - pages(b)),
        (intersect(a, b), pages(a) & pages(b)),
        (subtract(a, no_runs()), pages(a)),
        (intersect(no_runs(), b), set()),
    ):
        assert pages(found) == wanted and is_sorted(found)


@given(RUNS)
def test_expand_and_back(runs: Runs) -> None:
    merged = merge_runs(runs)
    found = expand(merged)
    assert found.tolist() == sorted(pages(runs))
    assert to_runs(found).tolist() == merged.tolist()
    assert (page_runs(found) * np.uint64(PAGE)).tolist() == merged.tolist()
    assert found[run_starts(found)].tolist() == (merged[:, 0] // PAGE).tolist()


@given(RUNS)
def test_expand_keeps_the_order(runs: Runs) -> None:
    assert expand(runs).tolist() == [p for a, b in runs.tolist() for p in range(a // PAGE, b // PAGE)]


@given(RUNS, NUMBERS)
def test_inside(runs: Runs, numbers: Pages) -> None:
    assert inside(numbers, runs).tolist() == [n in pages(runs) for n in numbers.tolist()]


@given(SORTED, NUMBERS)
def test_rows_of(runs: Runs, numbers: Pages) -> None:
    rows = rows_of(numbers * np.uint64(PAGE), runs).tolist()
    for number, row in zip(numbers.tolist(), rows, strict=True):
        assert [i for i, run in enumerate(runs) if number in pages(run[None])] == [row] * (row >= 0)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1000))))
def test_latest(entries: list[tuple[int, int]]) -> None:
    keys = np.array([k for k, _ in entries], np.uint64)
    values = np.array([v for _, v in entries], np.int64)
    found_keys, found = latest(keys, values)
    assert dict(zip(found_keys.tolist(), found.tolist(), strict=True)) == dict(entries)
    assert found_keys.tolist() == sorted(dict(entries))


@given(PAGES, NUMBERS)
def test_index_of(held: Pages, wanted: Pages) -> None:
    listed = held.tolist()
    assert index_of(held, wanted).tolist() == [
        listed.index(n) if n in listed else -1 for n in wanted.tolist()
    ]


@given(PAGES, NUMBER, st.integers(0, 100))
def test_between(held: Pages, start: int, count: int) -> None:
    part = held[between(held, start * PAGE, (start + count) * PAGE)]
    assert part.tolist() == [n for n in held.tolist() if start <= n < start + count]


@given(PAGES, st.integers(1, 40))
def test_batches(held: Pages, size: int) -> None:
    parts = list(batches(held, size))
    assert [n for part in parts for n in part.tolist()] == held.tolist()
    assert all(len(part) == size for part in parts[:-1]) and all(0 < len(part) <= size for part in parts)
    assert [n for part in slices(len(held), size) for n in held[part].tolist()] == held.tolist()


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
