"""Read and write the memory of a stopped process, page by page where a run cannot be had at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from checkpoint.rollback.stored import Contents
from uffdtrack import PAGE, parse_maps, proc_read, write_pages
from uffdtrack.errors import TargetError
from uffdtrack.runs import Pages, Runs, intersect, merge_runs, to_runs


def read_remote(memory: int, pages: Pages) -> tuple[Contents, npt.NDArray[np.bool_]]:
    """The contents of pages, by an open /proc/PID/mem, and which of them we could read.

    The others have no contents; they count as zeros, as they are stored.
    """
    out = np.zeros((len(pages), PAGE), np.uint8)
    readable = np.ones(len(pages), bool)

    def transfer(start: int, view: memoryview, row: int) -> int:
        try:
            return os.preadv(memory, [view], start) // PAGE * PAGE
        except OSError:
            return 0

    for row in _each(pages, out, transfer):
        readable[row] = False
    return out, readable


def write_remote(pid: int, tid: int, memory: int, pages: Pages, contents: Contents) -> None:
    """Write pages. Raises: TargetError: we could not write one.

    Args:
        tid: a thread of process `pid`.
        memory: its `mem`, open for writing.
    """

    def transfer(start: int, view: memoryview, row: int) -> int:
        try:
            return os.pwrite(memory, view, start)
        except OSError as error:
            if not contents[row].any() and not read_remote(memory, pages[row : row + 1])[0].any():
                return PAGE - start % PAGE  # a page without contents, then and now
            raise TargetError(
                f"cannot write the memory of process {pid} at {start:#x}: {error.strerror}"
            ) from error

    first = write_pages(memory, tid, pages, contents)
    pages, contents = pages[first:], contents[first:]
    for row in _each(pages, contents, transfer):
        raise TargetError(f"cannot write the memory of process {pid} at {int(pages[row]) * PAGE:#x}")


def in_objects(pid: int, where: Runs) -> Runs:
    """Where the files in memory that a process maps have pages, whether it has touched them itself or not.

    Without CAP_CHECKPOINT_RESTORE we cannot know.
    """
    found = []
    for region in parse_maps(proc_read(pid, "maps").decode(errors="surrogateescape")):
        here = np.array([(region.start, region.end)], np.uint64)
        if not region.in_memory_file or not len(intersect(where, here)):
            continue
        with suppress(OSError):
            fd = os.open(f"/proc/{pid}/map_files/{region.start:x}-{region.end:x}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                for start, end in _data(fd, region.offset, region.offset + region.size):
                    at = region.start + start // PAGE * PAGE - region.offset
                    found.append((at, region.start + -(-end // PAGE) * PAGE - region.offset))
            finally:
                os.close(fd)
    return intersect(where, merge_runs(np.array(found, np.uint64).reshape(-1, 2)))


def _data(fd: int, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, in bytes. hugetlbfs calls holes data, and reading one takes from its pool."""
    if os.fstatvfs(fd).f_bsize != PAGE:
        return
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no more
            return
        hole = os.lseek(fd, data, os.SEEK_HOLE)
        if data < at or data >= end or hole <= data:
            return
        yield data, min(hole, end)
        at = hole


def _each(pages: Pages, contents: Contents, transfer: Callable[[int, memoryview, int], int]) -> list[int]:
    """Move runs of pages, as far as `transfer` gets at once; returns the rows where it got nowhere."""
    stuck = []
    first = 0
    for start, end in to_runs(pages).tolist():
        size = end - start
        block = contents[first : first + size // PAGE].reshape(-1).data
        at = 0
        while at < size:
            row = first + at // PAGE
            n = transfer(start + at, block[at:], row)
            if not n:
                stuck.append(row)
            at += n or PAGE - at % PAGE
        first += size // PAGE
    return stuck
