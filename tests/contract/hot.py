"""Cycles that copy contents, for tests: the shadow gets what exchange() has copied, nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.contract.combinations import OWN, PAGES
from tests.contract.conftest import Guest

HOT = [name for name in OWN if name != "scan"]
"""Engines that leave pages writable. A scan sets the traps of all pages that it finds."""


def buffer(rows: int = PAGES) -> Any:
    return np.zeros((rows, 4096), np.uint8)


def take(guest: Guest, into: Any) -> list[int]:
    """End a cycle; the rows of its pages."""
    pages = guest.tracker.exchange(into)
    rows = guest.index(pages)
    assert len(rows) == len(set(rows)), "a page is listed twice"
    guest.shadow.reshape(-1, 4096)[rows] = into[: len(rows)]
    return rows


def heat(guest: Guest, pages: list[int], into: Any, first: int = 1) -> None:
    """Write pages in some cycles one after the other."""
    for value in range(first, first + 4):
        guest.write(0, pages, value)
        assert set(take(guest, into)) >= set(pages)


def traps_set(guest: Guest) -> int:
    return int(guest.tracker.stats.rearm_pages)
