"""Pages against earlier copies of them: where they differ, and how."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from uffdtrack._sys import ffi, lib
from uffdtrack.runs import Pages, Rows

Contents = npt.NDArray[np.uint8]
"""Pages back to back: shape (n, 4096)."""
Checks = npt.NDArray[np.uint64]
STRETCH: int = lib.UT_STRETCH
"""So many bytes, aligned, count as one that differs."""
BITS: int = lib.UT_DIFFERENCE - 4096
"""Bytes of a difference before its first stretch."""
DIFFERENCE: int = lib.UT_DIFFERENCE
"""Bytes of the longest difference: a bit for each stretch, then the XOR of those that differ."""
NOT_CLOSE: int = lib.UT_NOT_CLOSE


def _of(kind: str, array: npt.NDArray[Any]) -> Any:
    return ffi.from_buffer(kind, array)


def _rows(rows: Rows) -> Any:
    return ffi.from_buffer("int64_t[]", np.ascontiguousarray(rows, np.int64))


def differences_to(
    pages: Contents, copies: Contents, old: Rows, keep: Rows, limit: int, room: npt.NDArray[np.uint8]
) -> tuple[int, npt.NDArray[np.uint16], Checks]:
    """Compare pages with copies of them, and make them the copies of the next time.

    Args:
        pages: contiguous.
        copies: contiguous; it is changed.
        old: where the copy of each page is, -1 for none.
        keep: where each is to be kept, -1 for nowhere; the same as `old` where that is not -1.
        limit: so many stretches may differ.
        room: gets the differences, back to back: `DIFFERENCE` bytes for each page.

    Returns:
        How many bytes of `room` are differences now. Of each page how many stretches differ, or `NOT_CLOSE`;
        those with 0 have no difference there. The checks of those that are close.
    """
    differing, checks = np.empty(len(pages), np.uint16), np.empty(len(pages), np.uint64)
    size = lib.ut_differences(
        _of("uint8_t[]", pages), len(pages), _of("uint8_t[]", copies), _rows(old), _rows(keep), limit,
        _of("uint8_t[]", room), _of("uint16_t[]", differing), _of("uint64_t[]", checks),
    )  # fmt: skip
    return int(size), differing, checks


def xor_differences(pages: Contents, rows: Rows, differences: bytes) -> bool:
    """XOR each of several differences into a row of `pages`, -1 for none; False: they are damaged."""
    data = ffi.from_buffer("uint8_t[]", differences)
    return not lib.ut_xor_differences(_of("uint8_t[]", pages), _rows(rows), len(rows), data, len(differences))


def page_checks(pages: Contents, rows: Rows) -> Checks:
    """The XXH64 (seed 0) of some rows of `pages`, which are contiguous."""
    out = np.empty(len(rows), np.uint64)
    lib.ut_page_checks(_of("uint8_t[]", pages), _rows(rows), len(rows), _of("uint64_t[]", out))
    return out


def copy_changed(pages: Contents, copies: Contents) -> Rows:
    """Make copies, contiguous as the pages are, what these are; returns the rows that differed."""
    rows = np.empty(len(pages), np.int64)
    was = _of("uint8_t[]", copies)
    n = lib.ut_copy_changed(_of("uint8_t[]", pages), len(pages), was, _of("int64_t[]", rows))
    return rows[:n]


def places_of(pages: Pages, places: Rows, wanted: Pages) -> tuple[Rows, int] | None:
    """The places of wanted pages, -1 for those that are not among `pages`, and how many are.

    Args:
        pages: sorted.

    Returns:
        None: those that are wanted are not sorted, or one is there twice.
    """
    out = np.empty(len(wanted), np.int64)
    numbers = _of("uint64_t[]", np.ascontiguousarray(wanted, np.uint64))
    found = lib.ut_places_of(
        _of("uint64_t[]", pages), _rows(places), len(pages), numbers, len(wanted), _of("int64_t[]", out)
    )
    return (out, int(found)) if found >= 0 else None


def fill_rows(to: Contents, rows: Rows, contents: memoryview) -> None:
    """Copy pages that are back to back, each into its row of `to`, which is contiguous."""
    lib.ut_places_fill(_of("uint8_t[]", to), _rows(rows), len(rows), ffi.from_buffer("uint8_t[]", contents))


def exchange_rows(pages: Pages, rows: Rows, later: Pages, later_rows: Rows) -> bool:
    """Exchange rows, where all of `later` are in `pages`. False: some are not, and nothing was changed."""
    count = len(later)
    room = np.empty(count, np.int64)
    known = lib.ut_places_exchange(
        _of("uint64_t[]", pages), _of("int64_t[]", rows), len(pages), _of("uint64_t[]", later),
        _of("int64_t[]", later_rows), count, _of("int64_t[]", room),
    )  # fmt: skip
    return int(known) == count
