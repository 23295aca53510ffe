"""Attributes of mappings, and breakpoints: what is decided without a process."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from checkpoint.rollback.attributes import Flags, Recorded, keeps_advice, must_be_made_anew, steps
from checkpoint.rollback.attributes import _parse as parse
from checkpoint.rollback.breakpoints import uprobes

SMAPS = b"""7f0000000000-7f0000001000 rw-p 00000000 00:00 0 [heap]
Rss:                   4 kB
KernelPageSize:        4 kB
ProtectionKey:         0
VmFlags: rd wr mr mw me ac wf dd
7f0000001000-7f0000002000 r--p 00000000 00:00 0
KernelPageSize:        4 kB
ProtectionKey:         0
VmFlags: rd mr mw me ac wf dd
7f0000002000-7f0000003000 rw-p 00000000 08:01 7 /tmp/VmFlags: lo
KernelPageSize:        4 kB
ProtectionKey:         3
VmFlags: rd wr mr mw me ac
7f0000200000-7f0000400000 rw-p 00000000 00:0f 9 /anon_hugepage (deleted)
KernelPageSize:     2048 kB
ProtectionKey:         0
VmFlags: rd wr mr mw me de ht
7f0000400000-7f0000401000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me ac
"""
CHANGEABLE = ("wf", "dc", "dd", "mg", "rr", "sr", "key:1", "lo", "lo lf", "")


def test_smaps() -> None:
    """Neighbours that are alike are one range; a file's name says nothing."""
    assert parse(SMAPS) == [
        (0x7F0000000000, 0x7F0000002000, {"wf", "dd"}),
        (0x7F0000002000, 0x7F0000003000, {"key:3"}),
        (0x7F0000200000, 0x7F0000400000, {"ht", "page:2048"}),
    ]


@pytest.mark.parametrize(("a", "b"), list(itertools.permutations(CHANGEABLE, 2)))
def test_each_step_has_one_that_takes_it_back(a: str, b: str) -> None:
    has, wanted = frozenset(a.split()[:2]), frozenset(b.split()[:2])
    forth, back = steps(0, 4096, 3, has, wanted), steps(0, 4096, 3, wanted, has)
    assert [(undo, do) for do, undo in forth] == back and forth


@pytest.mark.parametrize(
    ("has", "wanted", "anew"),
    [("hg", "", True), ("", "hg", False), ("hg", "nh", False), ("", "gd", True), ("dp wf dd", "", True),
     ("ht page:2048", "ht page:1048576", True), ("sl", "", True), ("nr", "", False), ("wf", "dc", False)],
)  # fmt: skip
def test_what_no_call_changes_is_made_anew(has: str, wanted: str, anew: bool) -> None:
    flags = frozenset(has.split()), frozenset(wanted.split())
    assert (must_be_made_anew(*flags) or keeps_advice(*flags)) == anew


def test_attributes_that_an_image_does_not_know() -> None:
    none: Flags = frozenset()
    recorded = Recorded.of([[0, 8192, "dc"]], [[4096, 8192]])
    assert recorded.at(0) == {"dc"} and recorded.at(4096) is None and recorded.at(8192) == none
    assert Recorded.of(None, None).at(4096) is None, "of an older image, nothing is known"


def pages(**changes: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A page of code, with a five-byte nop at 100, and some bytes that are others."""
    page = np.full((1, 4096), 0x90, np.uint8)
    page[0, 100:105] = (0x0F, 0x1F, 0x44, 0, 0)
    for at, value in changes.items():
        page[0, int(at[1:])] = value
    return page


@pytest.mark.parametrize(
    ("now", "then", "kernels"),
    [
        ({"_7": 0xCC}, {}, [7]),
        ({}, {"_7": 0xCC}, [7]),
        ({"_7": 0xCC}, {"_7": 0xCC}, []),
        ({"_7": 0xCC}, {"_7": 0x55}, []),  # the program has written it
        ({"_7": 0x55}, {}, []),
        ({"_7": 0xCC, "_9": 1}, {"_8": 0xCC}, [7, 8]),
        ({"_100": 0xE8, "_101": 1, "_102": 2, "_103": 3, "_104": 4}, {}, [100, 101, 102, 103, 104]),
        ({}, {"_100": 0xCC, "_101": 1, "_102": 2}, [100, 101, 102]),
        ({"_101": 1}, {}, []),
    ],
)
def test_bytes_of_uprobes(now: dict[str, int], then: dict[str, int], kernels: list[int]) -> None:
    found = uprobes(pages(**now), pages(**then), pages())
    assert np.flatnonzero(found[0]).tolist() == kernels
