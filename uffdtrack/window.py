"""The window of one stop of an attached process, and what is pending of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import Any

from uffdtrack.maps import Region
from uffdtrack.runs import Pages, Runs, merge_runs, no_runs
from uffdtrack.tracee import ThreadState

Heads = dict[tuple[str, int], bytes]
"""First pages of ELF files, by device as in `Region` and inode."""


@dataclass(slots=True, kw_only=True)
class StopTimes:
    """How long a stop has lasted, in microseconds: all of it (pause), and its parts.

    Of several stops, as a base has, these are sums, and `longest_us` is the longest one's; 0: there was one.
    """

    stop_us: float
    harvest_us: float
    copy_us: float
    rearm_us: float
    pause_us: float
    longest_us: float = 0.0

    @property
    def resume_us(self) -> float:
        """The rest of the pause."""
        return self.pause_us - self.stop_us - self.harvest_us - self.copy_us - self.rearm_us


_TIMES = [(part.name, part.name.replace("_us", "_ns")) for part in fields(StopTimes)]


def stop_times(native: Any) -> dict[str, Any]:
    """The fields of `StopTimes`, of the core's times in ns."""
    return {name: getattr(native, of) / 1e3 for name, of in _TIMES}


@dataclass(slots=True)
class Window(StopTimes):
    """The result of one stop of the target.

    Attributes:
        regions: the mappings at that instant; the same list as in the window before if they are the same.
        threads: the registers at that instant.
        data: ranges with contents; the contents are back to back in `contents`.
        zero: ranges that were written and have zeros.
        reset: ranges whose earlier contents are void: new mappings, and pages given back.
        contents: valid until the next window of this address space, unless they are lent.
        unreadable: pages without content (past a file's end, guard pages).
        compared: how many mappings we follow by comparing contents, since others can write them.
        scanned: the harvest looked through the page tables of the whole memory.
        touched: "ring", "sync": pages with a fault since the last window; 0 if that is not known.
        heads: the first page of mapped ELF files that was not handed over yet.
        elsewhere: shared mappings that another process of a tree stores: start, end, the address there, and
            the number of that member (`ProcessTree`).
        data_pages: the page numbers of `data`, if they are at hand.
        ran: when it ran on, in time.perf_counter(); `time_ns`: on the host's clock.
        late: how many intervals had passed since the window was due, of one that was taken ahead (`Series`).
    """

    regions: list[Region]
    threads: list[ThreadState]
    data: Runs
    zero: Runs
    reset: Runs
    contents: memoryview
    unreadable: int
    compared: int
    scanned: bool
    touched: int
    heads: Heads = field(default_factory=dict)
    elsewhere: list[tuple[int, int, int, int]] = field(default_factory=list)
    data_pages: Pages | None = None
    ran: float = field(default_factory=time.perf_counter)
    time_ns: int = field(default_factory=time.time_ns)
    late: int = 0


@dataclass(slots=True)
class Pending:
    """What was harvested, and is not stored yet."""

    pages: Runs = field(default_factory=no_runs)
    reset: Runs = field(default_factory=no_runs)
    everything: bool = False
    heads: Heads = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.everything or len(self.pages) or len(self.reset) or self.heads)

    def add(self, pages: Runs, reset: Runs) -> None:
        self.pages = merge_runs(self.pages, pages) if len(self.pages) else pages
        self.reset = merge_runs(self.reset, reset) if len(self.reset) else reset

    def merge(self, other: Pending) -> None:
        """Add what was handed over, and is not stored after all."""
        self.add(other.pages, other.reset)
        self.everything = self.everything or other.everything
        self.heads.update(other.heads)
