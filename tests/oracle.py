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


def deltas(file: EpochFile, data: bytes) -> Iterator[tuple[list[int], Any]]:
    """The pages that a file has as XOR with what they were before, by docs/image.md: frame by frame."""
    for table in (held for _, kind, held in file.notes if kind == 0x75660007):
        frames, pages = struct.unpack_from("<II", table)
        at = 8 + 16 * frames
        assert len(table) == at + 16 * pages
        for offset, size, count in struct.iter_unpack("<QII", table[8:at]):
            held = bytes(32 * count)  # of pages that did not change
            if size:
                held = ZstdDecompressor().decompress(data[offset : offset + size])
            yield [struct.unpack_from("<Q", table, at + 16 * n)[0] for n in range(count)], frame(held, count)
            at += 16 * count


def frame(held: bytes, count: int) -> Any:
    """Pages of a frame: each has a bit for each part of 16 bytes, and then the parts whose bits are set."""
    starts, at = [], 0
    for _ in range(count):
        starts.append(at)
        at += 32 + 16 * int.from_bytes(held[at : at + 32], "little").bit_count()
    assert at == len(held)
    words = np.frombuffer(held, np.uint8).reshape(-1, 16)
    of_bits = np.array(starts, np.int64)[:, None] // 16 + [0, 1]
    bits = np.unpackbits(words[of_bits].reshape(count, 32), axis=1, bitorder="little").astype(bool)
    out = np.zeros((count, PAGE // 16, 16), np.uint8)
    out[bits] = np.delete(words, of_bits, axis=0)
    return out.reshape(count, PAGE)


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
        for pages, differences in deltas(file, data):
            before = np.frombuffer(b"".join(self.pages[page] for page in pages), np.uint8)
            for page, after in zip(pages, before.reshape(-1, PAGE) ^ differences, strict=True):
                self.pages[page] = after.tobytes()
            self.deltas += len(pages)

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
