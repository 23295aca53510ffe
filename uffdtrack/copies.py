"""Pages against earlier copies of them: how far they differ, and the XOR of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from uffdtrack._sys import ffi, lib
from uffdtrack.runs import Rows

Contents = npt.NDArray[np.uint8]
"""Pages back to back: shape (n, 4096)."""
Checks = npt.NDArray[np.uint64]
STRETCH: int = lib.UT_STRETCH
"""So many bytes, aligned, count as one that differs."""
NOT_CLOSE: int = lib.UT_NOT_CLOSE


def _of(kind: str, array: npt.NDArray[Any]) -> Any:
    return ffi.from_buffer(kind, array)


def _rows(rows: Rows) -> Any:
    return ffi.from_buffer("int64_t[]", np.ascontiguousarray(rows, np.int64))


def xor_copies(
    pages: Contents, copies: Contents, old: Rows, keep: Rows, limit: int, xors: Contents
) -> tuple[int, npt.NDArray[np.uint16]]:
    """Compare pages with copies of them, and make them the copies of the next time.

    Args:
        pages: contiguous.
        copies: contiguous; it is changed.
        old: where the copy of each page is, -1 for none.
        keep: where each is to be kept, -1 for nowhere; the same as `old` where that is not -1.
        limit: so many stretches may differ.
        xors: room for as many pages.

    Returns:
        How many XORs there are in `xors` now, back to back; of each page how many stretches differ, or
        `NOT_CLOSE`. Those with 0 have no XOR.
    """
    differing = np.empty(len(pages), np.uint16)
    appended = lib.ut_xor_copies(
        _of("uint8_t[]", pages), len(pages), _of("uint8_t[]", copies), _rows(old), _rows(keep), limit,
        _of("uint8_t[]", xors), _of("uint16_t[]", differing),
    )  # fmt: skip
    return int(appended), differing


def xor_into(pages: Contents, rows: Rows, xors: Contents) -> None:
    """XOR contents, back to back, into some rows of `pages`."""
    lib.ut_xor_into(_of("uint8_t[]", pages), _rows(rows), _of("uint8_t[]", xors), len(rows))


def page_checks(pages: Contents, rows: Rows) -> Checks:
    """The XXH64 (seed 0) of some rows of `pages`, which are contiguous."""
    out = np.empty(len(rows), np.uint64)
    lib.ut_page_checks(_of("uint8_t[]", pages), _rows(rows), len(rows), _of("uint64_t[]", out))
    return out
