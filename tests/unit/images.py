"""Epoch files of a process that there is not."""

from __future__ import annotations

from typing import Any

import numpy as np

from checkpoint.chain_writer import ChainWriter
from checkpoint.elf import SCHEMA, thread_notes
from uffdtrack import PAGE, Region, Rseq, ThreadState

BASE = 0x10000000
REGION = Region(BASE, BASE + 256 * PAGE, "rw-p", 0, "00:00", 0, "")
PROCESS = {
    "pid": 7, "ppid": 1, "pgrp": 7, "sid": 7, "uid": 0, "gid": 0, "comm": "x", "cmdline": "x y",
    "start_time": 1, "boot_id": "b", "exe": "/x",
}  # fmt: skip
THREADS = [
    ThreadState(7 + i, bytes([i]) * 216, bytes([i + 1]) * 832, 1 << i, False, Rseq(i, 32, 5) if i else None)
    for i in range(3)
]

Content = dict[int, int]
"""Page number relative to BASE -> the byte that fills it."""


def write(
    chain: ChainWriter, content: Content, reset: list[tuple[int, int]] | None = None, base: bool = False
) -> None:
    writer = chain.begin()
    for page, byte in content.items():
        run = np.array([[BASE + page * PAGE, BASE + (page + 1) * PAGE]], np.uint64)
        if byte:
            writer.add(run, memoryview(bytes([byte]) * PAGE))
        else:
            writer.add_zero(run)

    def describe(pages: int, size: int) -> dict[str, Any]:
        return {
            "schema": SCHEMA, "epoch": chain.next_epoch, "base": base, "parent": chain.parent,
            "keyed": bool(chain.key), "process": PROCESS,
            "regions": [[REGION.start, REGION.end, REGION.permissions, 0, "00:00", 0, ""]],
            "reset": [[BASE + a * PAGE, BASE + b * PAGE] for a, b in reset or []],
            "row": {"epoch": chain.next_epoch, "base": base, "pages": pages, "bytes": size},
            "descriptors": [], "files": {}, "heap_end": 0, "threads": [7], "kernel_threads": [],
        }  # fmt: skip

    _, digest = writer.finish(describe, thread_notes(THREADS, PROCESS), [REGION], chain.key)
    writer.make_safe()
    chain.committed(digest)
