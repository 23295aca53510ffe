"""Checks epochs against the log that tests/programs/writer.c keeps in its own memory.

It shares nothing with the tracker but the files: pages are put together here, epoch by epoch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from zstandard import ZstdDecompressor

from checkpoint.elf import ZERO
from checkpoint.image import EpochFile

PAGE = 4096
PAGES, AREAS = 128, 10
AREA_WORDS = 4 + 2 * PAGES
WORDS = [0, 256, 511]


def deltas(file: EpochFile, data: bytes) -> Iterator[tuple[int, Any, Any]]:
    """The pages that a file has as XOR with what they were before, by docs/image.md.

    Yields: a page, the numbers of its parts of 16 bytes that differ, and these.
    """
    for table in (held for _, kind, held in file.notes if kind == 0x75660007):
        frames, pages = struct.unpack_from("<II", table)
        at = 8 + 16 * frames
        assert len(table) == at + 16 * pages
        for offset, size, count in struct.iter_unpack("<QII", table[8:at]):
            held = np.zeros(32 * count, np.uint8)  # of pages that did not change
            if size:
                held = np.frombuffer(ZstdDecompressor().decompress(data[offset : offset + size]), np.uint8)
            for _ in range(count):
                (changed,) = np.unpackbits(held[:32], bitorder="little").nonzero()
                end = 32 + 16 * len(changed)
                yield struct.unpack_from("<Q", table, at)[0], changed, held[32:end].reshape(-1, 16)
                held, at = held[end:], at + 16
            assert not len(held)


class OracleError(AssertionError):
    """An epoch is not a state that the writer was in."""


@dataclass
class Memory:
    """The writer's memory, replayed from epoch files in their order."""

    control: int
    pages: dict[int, bytes] = field(default_factory=dict)
    checked: int = 0
    deltas: int = 0
    scanned: int = 0

    def apply(self, file: EpochFile) -> None:
        for start, end in file.reset.tolist():
            first, last = start // PAGE, end // PAGE
            if last - first > len(self.pages):
                for page in [p for p in self.pages if first <= p < last]:
                    del self.pages[page]
            else:
                for page in range(first, last):
                    self.pages.pop(page, None)
        data = Path(file.path).read_bytes()
        for page, offset in zip(file.pages.tolist(), file.offsets.tolist(), strict=True):
            if offset >= ZERO:
                self.pages[page] = bytes(PAGE) if offset == ZERO else data[offset : offset + PAGE]
        for page, changed, parts in deltas(file, data):
            held = np.frombuffer(bytearray(self.pages[page]), np.uint8).reshape(-1, 16)
            held[changed] ^= parts
            self.pages[page] = held.tobytes()
            self.deltas += 1

    def read(self, address: int, size: int) -> bytes:
        first, last = address // PAGE, (address + size - 1) // PAGE
        block = b"".join(self.pages.get(p, bytes(PAGE)) for p in range(first, last + 1))
        return block[address - first * PAGE :][:size]

    def check(self, file: EpochFile) -> None:
        """Raises OracleError where a page is not what the log of that instant says."""
        _, threads, counter, _ = struct.unpack("<4Q", self.read(self.control, 32))
        if not 1 <= threads <= 4:
            raise OracleError(f"epoch {file.epoch}: the log says {threads} threads")
        size = threads * AREAS * AREA_WORDS * 8
        table = np.frombuffer(self.read(self.control + 32, size), np.uint64).reshape(-1, AREA_WORDS)
        for area in table:
            address, kind, busy, pages = (int(x) for x in area[:4])
            if busy:
                continue
            before, after = area[4 : 4 + PAGES], area[4 + PAGES :]
            contents = np.frombuffer(self.read(address, pages * PAGE), np.uint64).reshape(pages, 512)
            for word in WORDS:
                found = contents[:, word]
                wrong = np.flatnonzero((found != before[:pages]) & (found != after[:pages]))
                if len(wrong):
                    p = int(wrong[0])
                    raise OracleError(
                        f"epoch {file.epoch}: page {p} of area {kind} at {address + p * PAGE:#x} holds "
                        f"{int(found[p]):#x}, the log says {int(before[p]):#x} or {int(after[p]):#x} "
                        f"({len(wrong)} pages wrong)"
                    )
            self.checked += pages
        self.check_counter(file, counter)

    def check_counter(self, file: EpochFile, counter: int) -> None:
        """The counting thread's register and its word in memory are of one instant."""
        if not counter:
            return
        registers = [int.from_bytes(t.regs[24:32], "little") for t in file.threads]  # r12
        if not any(0 <= r - counter <= 1 for r in registers):
            raise OracleError(f"epoch {file.epoch}: no r12 belongs to the counter {counter}")
