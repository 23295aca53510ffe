"""The costs of engines on this host, measured on a small RAM; "auto" picks by them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

from uffdtrack.engines.table import TABLE
from uffdtrack.ram import GuestRam
from uffdtrack.runs import PAGE
from uffdtrack.uffd_tracker import UffdTracker

_PAGES = 4096
_DIRTY = 256
_ROUNDS = 3
TYPICAL_DIRTY = 3000
"""Dirty pages of a cycle without a threshold (Lei Cao, KVM Forum 2016: 300 to 3000)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds.

    Attributes:
        write: of the first write to a page in a cycle.
        page: of a dirty page in an exchange.
        size: of a page of the RAM in an exchange, dirty or not.
    """

    write: float
    page: float
    size: float

    def cycle(self, dirty: int, pages: int) -> float:
        """The cost of a whole cycle, the guest's part included."""
        return dirty * (self.write + self.page) + pages * self.size


@cache
def measure(engine: str) -> Cost:
    """Try an engine on 16 MiB; once a process, some milliseconds."""
    write, full, idle = [], [], []
    with GuestRam(_PAGES * PAGE, shared=False) as ram:
        ram.array[::PAGE] = 1
        with UffdTracker(ram, TABLE[engine].traits, 1, None, "") as tracker, tracker.vcpu(0):
            step = ram.size // _DIRTY
            for _ in range(_ROUNDS):
                started = time.perf_counter()
                ram.array[::step] += 1
                written = time.perf_counter()
                tracker.exchange()
                exchanged = time.perf_counter()
                tracker.exchange()
                idle.append(time.perf_counter() - exchanged)
                full.append(exchanged - written)
                write.append(written - started)
    size = min(idle) if TABLE[engine].traits.cost == "O(size)" else 0.0
    page = max(min(full) - size, 0.0)
    return Cost(min(write) * 1e6 / _DIRTY, page * 1e6 / _DIRTY, size * 1e6 / _PAGES)


def cheapest(engines: list[str], pages: int, max_dirty_pages: int | None) -> tuple[str, str]:
    """The engine with the lowest cost of a cycle, and the figures."""
    dirty = min(max_dirty_pages or TYPICAL_DIRTY, pages)
    costs = {engine: measure(engine).cycle(dirty, pages) for engine in engines}
    figures = ", ".join(f"{engine} {cost / 1e3:.1f} ms" for engine, cost in costs.items())
    best = min(costs, key=lambda engine: costs[engine])
    return best, f"a cycle of {dirty} dirty pages: {figures}"
