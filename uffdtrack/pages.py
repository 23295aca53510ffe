"""Dirty pages as arrays, and their other forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from uffdtrack.runs import page_runs

Gfns = npt.NDArray[np.uint64]
Vcpus = npt.NDArray[np.int32]


class DirtyPages:
    """Pages of one cycle, in lists: views of the tracker's memory, not copies.

    They are valid until the next `prepare()` or `exchange()`; copy what has to last longer.

    Attributes:
        gfn: shape (n,), uint64: guest frame numbers, each once, in no order.
        vcpu: shape (n,), int32: the vCPU that wrote first; -1 for the global list (host writes, pages that
            overflowed a vCPU's list, and pages that a scan found).
        cycle: number of the cycle, from 1.
    """

    __slots__ = ("cycle", "gfn", "rearmed", "vcpu")

    def __init__(self, gfn: Gfns, vcpu: Vcpus, cycle: int) -> None:
        self.gfn = gfn
        self.vcpu = vcpu
        self.cycle = cycle
        self.rearmed = False

    def __len__(self) -> int:
        return len(self.gfn)

    def __repr__(self) -> str:
        return f"<DirtyPages: {len(self)} of cycle {self.cycle}>"

    def of_vcpu(self, vcpu: int) -> Gfns:
        """The frame numbers in one vCPU's list, or in the global one (-1)."""
        found: Gfns = self.gfn[self.vcpu == vcpu]
        return found

    def runs(self) -> Gfns:
        """Ranges of frame numbers: shape (n, 2), start inclusive and end exclusive, ascending."""
        return page_runs(np.sort(self.gfn))


@dataclass(frozen=True, slots=True)
class DirtyLog:
    """A cycle's dirty log in its smaller form.

    Attributes:
        kind: "list" or "bitmap".
        data: list: frame numbers, uint64. bitmap: one bit a page of the RAM, in the order of its memslots,
            uint8, the lowest bit first (KVM_GET_DIRTY_LOG's order).
    """

    kind: Literal["list", "bitmap"]
    data: npt.NDArray[np.uint64] | npt.NDArray[np.uint8]


def smaller_log(gfn: Gfns, rows: npt.NDArray[np.int64], pages: int) -> DirtyLog:
    """The log of some frames; `rows` are their places among the `pages` of the RAM."""
    if gfn.nbytes <= (pages + 7) // 8:
        return DirtyLog("list", gfn)
    bits = np.zeros(pages, np.bool_)
    bits[rows] = True
    return DirtyLog("bitmap", np.packbits(bits, bitorder="little"))


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since `activate()`.

    Attributes:
        cycles, pages: ended cycles, and pages in them.
        duplicates: how often a page was reported again in its cycle.
        scans: PAGEMAP_SCANs of the whole RAM.
        lost: ring: cycles in which a ring was full, made good by a scan.
        audits: ring: cycles in which a thread had faults without a sample, made good by a scan.
        overflows: cycles in which the lists were too small, made good by the bitmap.
        carried: pages that a rearm found written meanwhile.
        everything: cycles that list the whole RAM, since nothing better is known (a vCPU process died).
        rearm_calls, rearm_pages: system calls that set traps, and of how many pages.
        false_full: pauses that ended by themselves, since the lists were not full after all.
    """

    cycles: int
    pages: int
    duplicates: int
    scans: int
    lost: int
    audits: int
    overflows: int
    carried: int
    everything: int
    rearm_calls: int
    rearm_pages: int
    false_full: int
