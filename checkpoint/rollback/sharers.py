"""Shared memory that a rollback changes, and the other processes that map it: it changes for them, too."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.layout import Change
from checkpoint.rollback.plan import Plan
from checkpoint.rollback.torn import listed
from uffdtrack import PAGE, Region, Runs, command_name, parse_maps, task_directory
from uffdtrack.errors import TargetGoneError
from uffdtrack.runs import rows_of, to_runs

_SHARED = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ [r-][w-][x-]s .*$", re.MULTILINE)
Memory = tuple[str, int, str]
"""What is mapped: device, inode, and of a System V segment its IPC namespace: its inode is its id there."""


@dataclass(frozen=True, slots=True)
class Touched:
    """A shared mapping of which a rollback changes pages; `runs`: where they are in the file, in bytes."""

    region: Region
    runs: Runs
    pages: int

    def __str__(self) -> str:
        many = "s" * (self.pages > 1)
        return f"{self.pages} page{many} of the shared mapping at {self.region.start:#x} ({self.region.name})"

    @property
    def has_name(self) -> bool:
        """Whether any process may find its contents by a name, as those of a file."""
        name = self.region.name
        return name.startswith("/") and not name.endswith(" (deleted)")


def touched(plan: Plan, changes: Iterable[Change]) -> list[Touched]:
    """The shared mappings of which a plan changes pages."""
    shared = [c for c in changes if c.then and c.then.shared and c.then.stored]
    if not shared:
        return []
    ranges = np.array([(c.start, c.end) for c in shared], np.uint64)
    found: dict[Region, list[npt.NDArray[np.int64]]] = {}
    for pages, *_ in (*plan.write, *plan.exact):
        at = pages * np.uint64(PAGE)
        rows = rows_of(at, ranges)
        for row in np.unique(rows[rows >= 0]).tolist():
            region = shared[row].then
            assert region
            offsets = at[rows == row].astype(np.int64) - region.start + region.offset
            found.setdefault(region, []).append(offsets // PAGE)
    sorted_pages = {region: np.unique(np.concatenate(parts)) for region, parts in found.items()}
    return [
        Touched(region, to_runs(pages.astype(np.uint64)), len(pages))
        for region, pages in sorted_pages.items()
    ]


class Mappers:
    """Who maps shared memory, of the processes that we may look at.

    Attributes:
        together: processes that do not count: they are rolled back, or will be ended.
    """

    def __init__(self, together: Iterable[int]) -> None:
        self.together = set(together)
        self._looked_at: set[int] = set()
        self._last = b""
        self._found: dict[Memory, list[tuple[int, Region]]] = {}

    def look(self) -> None:
        """Look at the processes that have come since the last time. While none comes, /proc is not listed."""
        last = _last_made()
        if last == self._last:
            return
        self._last = last
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        for pid in pids - self._looked_at:
            with suppress(OSError, TargetGoneError):  # it has ended, or we may not
                for region in _shared_mappings(pid):
                    self._found.setdefault(_memory(pid, region), []).append((pid, region))
        self._looked_at |= pids

    def look_anew(self) -> None:
        """If somebody has looked: look at all processes, which may have mapped something since."""
        if not self._last:
            return
        self._last = b""
        self._looked_at.clear()
        self._found.clear()
        self.look()

    def of(self, pid: int, memory: Touched, writable: bool = False) -> list[str]:
        """The living processes that map pages of what process `pid` maps, each by its number and name.

        Args:
            writable: only those that can write them.
        """
        found = {}
        for other, region in self._found.get(_memory(pid, memory.region), []):
            if other in self.together or (writable and region.permissions[1] != "w"):
                continue
            first, last = region.offset, region.offset + region.size
            if ((memory.runs[:, 0] < last) & (memory.runs[:, 1] > first)).any():
                with suppress(TargetGoneError):  # it has ended
                    task_directory(other)
                    found[other] = f"process {other} ({command_name(other) or '?'})"
        return [found[other] for other in sorted(found)]


class Sharing:
    """The shared memory of one process that is rolled back."""

    def __init__(self, pid: int, regions: Iterable[Region], mappers: Mappers) -> None:
        """Look who maps it, while the process runs.

        Args:
            regions: its mappings at the epoch.
            mappers: with all processes that are rolled back.
        """
        self.mappers = mappers
        self._pid = pid
        self._touched: list[Touched] = []
        if any(region.shared and region.stored for region in regions):
            mappers.look()

    def check(self, plan: Plan, changes: Iterable[Change], anyway: bool) -> None:
        """Before a plan is carried out. The process stands.

        Raises:
            RollbackRefusedError: it would change memory under others that write it; not with `anyway`.
        """
        self._touched = touched(plan, changes)
        if not self._touched or anyway:
            return
        self.mappers.look()
        found = [
            f"{memory}, with {listed(others)}"
            for memory in self._touched
            if (others := self.mappers.of(self._pid, memory, writable=True))
        ]
        if found:
            raise RollbackRefusedError(
                f"process {self._pid} shares memory with processes that would not go back, and it would "
                f"change under them: {'; '.join(found)}. Take checkpoints of all of them together "
                "(--children), end the others first, or give --anyway"
            )

    def gone_back(self) -> list[str]:
        """Text about memory that was put back, where others than the process may see that. It may run."""
        if self._touched:
            self.mappers.look_anew()
        words = []
        for memory in self._touched:
            others = self.mappers.of(self._pid, memory)
            also = f"for {listed(others)}, too, which did not go back" if others else ""
            if memory.has_name:
                words.append(f"{memory} went back, and so did the file's contents{', ' * bool(also)}{also}")
            elif also:
                words.append(f"{memory} went back {also}")
        return words


def _last_made() -> bytes:
    """The number of the newest process or thread that we may see (proc_loadavg(5))."""
    with open("/proc/loadavg", "rb") as file:
        return file.read().split()[-1]


def _shared_mappings(pid: int) -> list[Region]:
    lines = _SHARED.findall((task_directory(pid) / "maps").read_bytes())
    return parse_maps(b"\n".join(lines).decode(errors="surrogateescape"))


def _memory(pid: int, region: Region) -> Memory:
    """Raises: OSError, TargetGoneError: the process has ended, or we may not look."""
    segment = region.name.startswith("/SYSV")
    return region.device, region.inode, os.readlink(task_directory(pid) / "ns/ipc") if segment else ""
