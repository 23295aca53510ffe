"""Make one epoch's image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from checkpoint import fast_json
from checkpoint.deltas import NO_DELTAS, NOTE_DELTAS, Coded
from checkpoint.digest import DIGEST_SIZE, HEAD, NOTE_BLAKE3, new_digest
from checkpoint.elf import (
    NOTE_META,
    NOTE_NAME,
    PHDR,
    ZERO,
    Offsets,
    elf_header,
    extra_section,
    note,
    region_flags,
)
from checkpoint.facts import ImageFacts
from checkpoint.side_by_side import side_by_side
from uffdtrack import PAGE, Region, Runs
from uffdtrack.runs import Mask, Pages, Rows, expand, inside, latest, slices, to_runs

WORTH_A_THREAD = 1 << 20
"""So many bytes are digested while they are written."""
_GATHERED = 64
"""So many pages that are scattered are put together for the digest, in the processor's cache."""


class ImageWriter(ABC):
    """Makes one epoch's image; subclasses say where its bytes go.

    You may add contents in parts; later contents replace earlier ones of the same page.

    Args:
        key: of the digest; empty for none.
    """

    def __init__(self, key: bytes) -> None:
        self.keyed = bool(key)
        self._pages: Pages = np.empty(0, np.uint64)
        self._offsets: Offsets = np.empty(0, np.int64)
        self._end = PAGE
        self._deltas = NO_DELTAS
        self._digest = new_digest(key)

    @property
    @abstractmethod
    def directory(self) -> Path | None:
        """Where its name is; None: it has none."""

    @abstractmethod
    def sync(self) -> None:
        """Bring the contents to where they are safe. Raises: StorageError: that failed."""

    @abstractmethod
    def rename(self) -> None:
        """Give it its name. Raises: StorageError: that failed."""

    @abstractmethod
    def abort(self) -> None:
        """Drop everything that has no name yet. Idempotent."""

    @abstractmethod
    def withdraw(self) -> None:
        """Drop everything, even what may look safe already."""

    @abstractmethod
    def _write(self, parts: Sequence[bytes | memoryview], offset: int) -> None:
        """Write parts back to back. They are valid in this call alone. Raises: StorageError: that failed."""

    def _write_pages(self, contents: Sequence[memoryview], aligned: bool) -> None:
        """Write contents of pages at the end. `aligned`: their address is that of a page."""
        self._write(contents, self._end)

    @abstractmethod
    def _written(self) -> None:
        """All was written."""

    def add(self, runs: Runs, contents: memoryview, chosen: Mask | None = None) -> None:
        """Append ranges whose contents are back to back.

        Args:
            chosen: which of their pages count; None: all.
        """
        if chosen is not None and not chosen.any():
            return
        pages = expand(runs)
        parts, digested = [contents], iter([contents])
        if chosen is not None and not chosen.all():
            rows = np.flatnonzero(chosen)
            pages = pages[rows]
            parts = [contents[a:b] for a, b in to_runs(rows.astype(np.uint64)).tolist()]
            digested = _gathered(contents, rows)
        if not len(pages):
            return
        aligned = address_of(contents) % PAGE == 0
        work: list[Callable[[], None]] = [
            lambda: self._write_pages(parts, aligned),
            lambda: self._note_digest(digested),
        ]
        size = sum(map(len, parts))
        if size < WORTH_A_THREAD:
            for do in work:
                do()
        else:
            side_by_side(lambda do: do(), work)
        self._index(pages, self._end + np.arange(len(pages), dtype=np.int64) * PAGE)
        self._end += size

    def add_deltas(self, deltas: Coded) -> None:
        """Add pages as deltas to what the epoch before has. Nothing else is added to it after that."""
        self._deltas = deltas

    def add_zero(self, runs: Runs) -> None:
        if not len(runs):
            return
        pages = expand(runs)
        self._index(pages, np.full(len(pages), ZERO, np.int64))

    def void(self, ranges: Runs) -> None:
        """Forget what was added so far in these ranges."""
        if len(self._pages):
            keep = ~inside(self._pages, ranges)
            self._pages, self._offsets = self._pages[keep], self._offsets[keep]

    def _note_digest(self, contents: Iterator[memoryview]) -> None:
        for part in contents:
            self._digest.update(part)

    def _index(self, pages: Pages, offsets: Offsets) -> None:
        self._pages = np.concatenate((self._pages, pages))
        self._offsets = np.concatenate((self._offsets, offsets))

    def finish(self, describe: Callable[[int, int], ImageFacts], notes: bytes, regions: list[Region]) -> str:
        """Write notes, headers and digest: the file is whole, and not on disk yet.

        Args:
            describe: gets the number of pages and of content bytes; returns what the JSON is to say.
            notes: thread and file notes.
            regions: the mappings, for segment flags.

        Returns:
            The digest in hex.

        Raises:
            StorageError: the disk is full or broken.
        """
        if len(self._pages):
            self._pages, self._offsets = latest(self._pages, self._offsets)
        deltas = self._deltas
        content = int((self._offsets != ZERO).sum()) * PAGE + deltas.size
        facts = describe(len(self._pages) + len(deltas.pages), content).to_json()
        facts["schema"] = ImageFacts.schema_of(facts, bool(len(deltas.pages)))
        if len(deltas.pages):
            notes += note(NOTE_NAME, NOTE_DELTAS, deltas.table(self._end))
        frames = [data for data, _ in deltas.frames] + [bytes(-deltas.size % 8)]
        for data in frames:
            self._digest.update(data)
        frames_at, self._end = self._end, self._end + sum(map(len, frames))
        digest_note = note(NOTE_NAME, NOTE_BLAKE3, bytes(DIGEST_SIZE))
        # Behind the fixed head and the padded name.
        digest_in_body = 12 + (len(NOTE_NAME) + 1 + 3) // 4 * 4
        body = digest_note + note(NOTE_NAME, NOTE_META, fast_json.encode(facts)) + notes
        headers = self._headers(regions, len(body))
        phoff = self._end + len(body)
        body += bytes(-phoff % 8)
        phoff = self._end + len(body)
        tail = body + headers.tobytes() + extra_section(len(headers))
        head = elf_header(phoff, len(headers), phoff + headers.nbytes).ljust(HEAD, b"\0")
        self._digest.update(tail)
        self._digest.update(head)
        digest = self._digest.digest()
        signed = tail[:digest_in_body], digest, tail[digest_in_body + DIGEST_SIZE :]
        self._write([*frames, *signed], frames_at)
        self._write([head], 0)
        self._written()
        return digest.hex()

    def _headers(self, regions: list[Region], note_size: int) -> npt.NDArray[Any]:
        pages, offsets = self._pages, self._offsets
        notes = (4, 4, self._end, 0, 0, note_size, 0, 4)
        if not len(pages):
            return np.array([notes], PHDR)
        new = np.ones(len(pages), bool)
        zero = offsets == ZERO
        follows = (pages[1:] == pages[:-1] + 1) & (
            (zero[1:] & zero[:-1]) | (~zero[1:] & ~zero[:-1] & (offsets[1:] == offsets[:-1] + PAGE))
        )
        new[1:] = ~follows
        first = np.flatnonzero(new)
        counts = np.diff(np.append(first, len(pages))).astype(np.uint64)
        headers = np.zeros(len(first) + 1, PHDR)
        headers[0] = notes
        load = headers[1:]
        zero = offsets[first] == ZERO
        load["type"] = 1
        load["vaddr"] = pages[first] * np.uint64(PAGE)
        load["memsz"] = counts * np.uint64(PAGE)
        load["filesz"] = np.where(zero, 0, load["memsz"])
        load["offset"] = np.where(zero, 0, offsets[first]).astype(np.uint64)
        load["align"] = PAGE
        load["flags"] = region_flags(regions, load["vaddr"])
        return headers


def _gathered(contents: memoryview, rows: Rows) -> Iterator[memoryview]:
    """Some pages of `contents`, many at a time: a digest is faster at that."""
    pages = np.frombuffer(contents, np.uint8).reshape(-1, PAGE)
    return (pages[rows[part]].reshape(-1).data for part in slices(len(rows), _GATHERED))


def address_of(contents: memoryview) -> int:
    return int(np.frombuffer(contents, np.uint8).ctypes.data)
