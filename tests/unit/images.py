"""Epoch files of a process that there is not."""

from __future__ import annotations

from typing import Any

import numpy as np

from checkpoint.chain_writer import ChainWriter
from checkpoint.elf import thread_notes
from checkpoint.facts import ImageFacts, ProcessFacts
from checkpoint.objects import ObjectFacts
from uffdtrack import PAGE, Region, Rseq, ThreadState

BASE = 0x10000000
REGION = Region(BASE, BASE + 256 * PAGE, "rw-p", 0, "00:00", 0, "")
PROCESS = ProcessFacts(7, 1, 7, 7, 0, 0, "x", "x y", "/x", 1, "b")
THREADS = [
    ThreadState(7 + i, bytes([i]) * 216, bytes([i + 1]) * 832, 1 << i, False, Rseq(i, 32, 5) if i else None)
    for i in range(3)
]

Content = dict[int, int]
"""Page number relative to BASE -> the byte that fills it."""


def facts_of(chain: ChainWriter, region: Region, **values: Any) -> ImageFacts:
    return ImageFacts(
        epoch=chain.next_epoch, parent=chain.parent, keyed=bool(chain.key), process=PROCESS, files={},
        heap_end=0, objects=ObjectFacts([]), threads=[7], kernel_threads=[],
        regions=[[region.start, region.end, region.permissions, 0, "00:00", 0, ""]], **values,
    )  # fmt: skip


def write(
    chain: ChainWriter, content: Content, reset: list[tuple[int, int]] | None = None, base: bool = False
) -> None:
    writer = chain.begin(chain.next_epoch)
    for page, byte in content.items():
        run = np.array([[BASE + page * PAGE, BASE + (page + 1) * PAGE]], np.uint64)
        if byte:
            writer.add(run, memoryview(bytes([byte]) * PAGE))
        else:
            writer.add_zero(run)

    def describe(pages: int, size: int) -> ImageFacts:
        row = {"epoch": chain.next_epoch, "base": base, "pages": pages, "bytes": size}
        cut = [[BASE + a * PAGE, BASE + b * PAGE] for a, b in reset or []]
        return facts_of(chain, REGION, base=base, row=row, reset=cut)

    digest = writer.finish(describe, thread_notes(THREADS, PROCESS), [REGION])
    writer.make_safe()
    chain.committed(chain.next_epoch, digest, last=True)
