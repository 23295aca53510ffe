"""Room in memory for pages, in one file that has no name: it is gone with the process."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from uffdtrack import PAGE, fill_rows
from uffdtrack.closing import Closing
from uffdtrack.errors import StorageError
from uffdtrack.runs import Rows

_GROW = 256
"""It grows by at least so many pages: 1 MiB, which takes a session half a millisecond."""
_SPARED = 1 / 16
"""Of the host's memory, and of what each cgroup may have, so much is left to others."""
_POPULATE_WRITE = 23  # madvise(2)
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory.high", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def available() -> int:
    """How many bytes of memory we may still take: what the host and each of our cgroups can spare."""
    least = _meminfo("MemAvailable") - int(_meminfo("MemTotal") * _SPARED)
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS / "memory" if controllers else _CGROUPS  # version 1 or 2
        group = root / path.strip("/")
        # In a container the root is a group, too, and its limit counts.
        least = min(least, *(_left(one) for one in (group, *group.parents) if one.is_relative_to(root)))
    return max(least, 0)


def _left(group: Path) -> int:
    """Bytes that a cgroup can spare, very many if it has no limit."""
    left, stat = sys.maxsize, ""
    with contextlib.suppress(OSError):
        stat = (group / "memory.stat").read_text()
    caches = (int(n) for n in re.findall(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE))
    gives_way = max(caches, default=0)
    for most, used in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limit = int((group / most).read_text())
            taken = int((group / used).read_text()) - gives_way
            left = min(left, limit - int(limit * _SPARED) - taken)
    return left


def _meminfo(name: str) -> int:
    """Bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


class Arena(Closing):
    """Pages that are taken and given back one by one. Its file grows up to a limit and does not shrink.

    Attributes:
        limit: bytes.
        fd: of the file; page n is at n * 4096.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit // PAGE * PAGE
        self.fd = -1
        self._size = 0  # pages
        self._free = np.empty(0, np.int64)
        self._unused = 0
        try:
            self.fd = os.memfd_create("uffdtrack-epochs", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, self.limit)
            self._map = mmap.mmap(self.fd, self.limit)
            os.ftruncate(self.fd, 0)  # it has what was grown, and no more
        except (OSError, ValueError) as error:
            self.close()
            raise StorageError(f"no memory for epochs: {error}") from error
        self._pages = np.frombuffer(self._map, np.uint8).reshape(-1, PAGE)

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return (self._size - self._unused) * PAGE

    def has_room(self, pages: int) -> bool:
        """Whether so many can be taken; it grows for that, if it may."""
        lacking = pages - self._unused
        if lacking > 0:
            self._grow(min(max(lacking, _GROW), self.limit // PAGE - self._size), lacking)
        return pages <= self._unused

    def _grow(self, pages: int, least: int) -> None:
        pages = min(pages, available() // PAGE)
        if pages < least:
            return
        try:
            os.ftruncate(self.fd, (self._size + pages) * PAGE)
            self._map.madvise(_POPULATE_WRITE, self._size * PAGE, pages * PAGE)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Linux before 5.14: a page is there when it is written
                return
        self.give_back(np.arange(self._size + pages - 1, self._size - 1, -1))
        self._size += pages

    def put(self, contents: memoryview) -> Rows:
        """Copy pages that are back to back; `has_room` was asked before. Returns where each is."""
        count = len(contents) // PAGE
        self._unused -= count
        rows = self._free[self._unused : self._unused + count].copy()
        fill_rows(self._pages, rows, contents)
        return rows

    def read(self, rows: Rows) -> npt.NDArray[np.uint8]:
        """Copies of some pages, shape (n, 4096)."""
        return self._pages[rows]

    def give_back(self, rows: Rows) -> None:
        """Pages that are no longer needed; numbers below 0 are of none."""
        if len(rows) and rows.min() < 0:
            rows = rows[rows >= 0]
        end = self._unused + len(rows)
        if end > len(self._free):
            self._free = np.resize(self._free, max(end, 2 * len(self._free)))
        self._free[self._unused : end] = rows
        self._unused = end

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
