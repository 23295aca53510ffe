"""Compare pages of a stopped process with contents in open files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from uffdtrack._sys import check_own, ffi, lib, runs_array
from uffdtrack.runs import Runs

Places = npt.NDArray[np.int64]
"""Where contents of pages are: shape (n, 2), an open file and an offset in it; file -1: zeros."""
DIFFERS: int = lib.UT_DIFFERS
UNREADABLE: int = lib.UT_UNREADABLE


def read_places(places: Places) -> npt.NDArray[np.uint8]:
    """The contents of pages, shape (n, 4096).

    Raises:
        TrackerError: a file cannot be read, or is too short.
    """
    out = np.empty((len(places), 4096), np.uint8)
    pointer = ffi.from_buffer("ut_place[]", np.ascontiguousarray(places, np.int64))
    check_own(lib.ut_read_places(pointer, len(places), ffi.from_buffer("uint8_t[]", out)), "read contents")
    return out


def shares_no_pages(pid: int, tid: int) -> bool:
    """Whether no other process shares pages of this one since a fork(2): the fastest way may then read it."""
    return bool(lib.ut_is_alone(pid, tid))


def compare_pages(
    memory: int,
    pages: npt.NDArray[np.uint64],
    places: Places,
    tid: int = 0,
    held: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Compare pages of a process, sorted, with contents in files.

    Args:
        memory: its /proc/PID/mem, open for reading.
        tid: a thread of it, if `shares_no_pages`.
        held: shape (n, 4096): gets what the process has in pages that differ.

    Returns:
        For each page the sum of DIFFERS and UNREADABLE (it has no contents, and is compared as zeros).

    Raises:
        TrackerError: as of `read_places`.
    """
    out = np.empty(len(pages), np.uint8)
    pages = np.ascontiguousarray(pages, np.uint64)
    pointer = ffi.from_buffer("ut_place[]", np.ascontiguousarray(places, np.int64))
    numbers, flags = ffi.from_buffer("uint64_t[]", pages), ffi.from_buffer("uint8_t[]", out)
    kept = ffi.NULL if held is None else ffi.from_buffer("uint8_t[]", held)
    check_own(lib.ut_compare(memory, tid, numbers, pointer, len(pages), flags, kept), "compare memory")
    return out


def compare_copies(copies: npt.NDArray[np.uint8], places: Places) -> npt.NDArray[np.uint8]:
    """Compare copies of pages, shape (n, 4096), with contents in files; returns DIFFERS or 0 for each.

    Raises:
        TrackerError: as of `read_places`.
    """
    out = np.empty(len(copies), np.uint8)
    pointer = ffi.from_buffer("ut_place[]", np.ascontiguousarray(places, np.int64))
    data, flags = ffi.from_buffer("uint8_t[]", copies), ffi.from_buffer("uint8_t[]", out)
    check_own(lib.ut_compare_copies(data, pointer, len(copies), flags), "compare copies")
    return out


def write_pages(memory: int, tid: int, pages: npt.NDArray[np.uint64], contents: npt.NDArray[np.uint8]) -> int:
    """Write pages of a process; returns how many it wrote before one that it could not.

    Args:
        memory: its /proc/PID/mem, open for writing.
        tid: a thread of it, by which it is faster; 0: none is known.
    """
    numbers = ffi.from_buffer("uint64_t[]", np.ascontiguousarray(pages, np.uint64))
    data = ffi.from_buffer("uint8_t[]", np.ascontiguousarray(contents, np.uint8))
    return int(lib.ut_write_pages(memory, tid, numbers, data, len(pages)))


def existing(pagemap: int, start: int, end: int) -> tuple[Runs, Runs]:
    """The pages that exist in a range, by an open /proc/PID/pagemap, and which of them are no file's."""
    found, own = ffi.new("ut_runs *"), ffi.new("ut_runs *")
    try:
        check_own(lib.ut_exist(pagemap, start, end, found, own), "read the pagemap")
        return runs_array(found), runs_array(own)
    finally:
        lib.runs_free(found)
        lib.runs_free(own)
