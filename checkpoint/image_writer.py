"""Write one epoch's file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
from checkpoint.files import sync_directory, translate, translated, write_all
from checkpoint.side_by_side import side_by_side
from uffdtrack import PAGE, Region, Runs
from uffdtrack.errors import UffdtrackError
from uffdtrack.runs import Mask, Pages, Rows, expand, inside, latest, slices, to_runs

WORTH_A_THREAD = 1 << 20
"""So many bytes are digested while they are written."""
_GATHERED = 64
"""So many pages that are scattered are put together for the digest, in the processor's cache."""


class EpochWriter:
    """Writes one epoch to a temporary file; the file gets its name when it is whole and on disk.

    You may add contents in parts; later contents replace earlier ones of the same page. Contents that are
    aligned go to the disk without a copy in the page cache (O_DIRECT), where the file system can do that.

    Args:
        path: the name that the file gets.
        key: of the digest; empty for none.
        give_way: called when the file is on disk, right before it gets its name; returns whether it has
            removed an older chain.
    """

    def __init__(self, path: Path, key: bytes, give_way: Callable[[], bool] = lambda: False) -> None:
        self.path = path
        self.keyed = bool(key)
        self._give_way = give_way
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._pages: Pages = np.empty(0, np.uint64)
        self._offsets: Offsets = np.empty(0, np.int64)
        self._end = PAGE
        self._deltas = NO_DELTAS
        self._digest = new_digest(key)
        self._named = self._is_all = False
        with translated(path):
            self._temporary.unlink(missing_ok=True)
            self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                self._direct = os.open(self._temporary, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            except OSError:
                self._direct = -1

    def add(self, runs: Runs, contents: memoryview, chosen: Mask | None = None) -> None:
        """Append ranges whose contents are back to back.

        Args:
            chosen: which of their pages count; None: all.
        """
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

    def _write_pages(self, contents: Sequence[memoryview], aligned: bool) -> None:
        if self._direct >= 0 and aligned:
            try:
                write_all(self._direct, contents, self._end)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise translate(error, self.path) from error
            self._close_direct()
        self._write(contents, self._end)

    def _write(self, parts: Sequence[bytes | memoryview], offset: int) -> None:
        with translated(self.path):
            write_all(self._fd, parts, offset)

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
        body = digest_note + note(NOTE_NAME, NOTE_META, json.dumps(facts).encode()) + notes
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
        self._close_direct()
        return digest.hex()

    def sync(self) -> None:
        """Bring the contents to disk. Raises: StorageError: that failed."""
        with translated(self.path):
            os.fdatasync(self._fd)
        self._close()

    def rename(self) -> None:
        """Give the file its name. Raises: StorageError: that failed."""
        with translated(self.path):
            self._is_all = self._give_way()
            self._temporary.replace(self.path)
            self._named = True

    def make_safe(self) -> None:
        """`sync`, `rename`, and bring the name to disk. Raises: StorageError: one of them failed."""
        self.sync()
        self.rename()
        with translated(self.path):
            sync_directory(self.path.parent)

    def _headers(self, regions: list[Region], note_size: int) -> npt.NDArray[Any]:
        pages, offsets = self._pages, self._offsets
        new = np.ones(len(pages), bool)
        if len(pages):
            zero = offsets == ZERO
            follows = (pages[1:] == pages[:-1] + 1) & (
                (zero[1:] & zero[:-1]) | (~zero[1:] & ~zero[:-1] & (offsets[1:] == offsets[:-1] + PAGE))
            )
            new[1:] = ~follows
        first = np.flatnonzero(new)
        counts = np.diff(np.append(first, len(pages))).astype(np.uint64)
        headers = np.zeros(len(first) + 1, PHDR)
        headers[0] = (4, 4, self._end, 0, 0, note_size, 0, 4)
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

    def abort(self) -> None:
        """Drop everything that has no name yet. Idempotent."""
        for _ in range(2):  # the first may fail for the descriptor of O_DIRECT
            with contextlib.suppress(UffdtrackError):
                self._close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Drop everything, even the file that has its name already, unless that is all there is."""
        self.abort()
        if self._named and not self._is_all:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        self._close_direct()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with translated(self.path):
                os.close(fd)

    def _close_direct(self) -> None:
        fd, self._direct = self._direct, -1
        if fd >= 0:
            with translated(self.path):
                os.close(fd)


def _gathered(contents: memoryview, rows: Rows) -> Iterator[memoryview]:
    """Some pages of `contents`, many at a time: a digest is faster at that."""
    pages = np.frombuffer(contents, np.uint8).reshape(-1, PAGE)
    return (pages[rows[part]].reshape(-1).data for part in slices(len(rows), _GATHERED))


def address_of(contents: memoryview) -> int:
    return int(np.frombuffer(contents, np.uint8).ctypes.data)
