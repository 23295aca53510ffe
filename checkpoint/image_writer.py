"""Write one epoch's file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from checkpoint.elf import (
    DIGEST_SIZE,
    NOTE_DIGEST,
    NOTE_META,
    NOTE_NAME,
    PHDR,
    ZERO,
    Offsets,
    elf_header,
    extra_section,
    file_digest,
    note,
    region_flags,
)
from checkpoint.facts import ImageFacts
from checkpoint.files import sync_directory, translate
from uffdtrack import PAGE, Region, Runs
from uffdtrack.runs import Pages, expand, inside, latest


class EpochWriter:
    """Writes one epoch to a temporary file; the file gets its name when it is whole and on disk.

    You may add contents in parts; later contents replace earlier ones of the same page.

    Args:
        path: the name that the file gets.
        give_way: called when the file is on disk, right before it gets its name; returns whether it has
            removed an older chain.
    """

    def __init__(self, path: Path, give_way: Callable[[], bool] = lambda: False) -> None:
        self.path = path
        self._give_way = give_way
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._pages: Pages = np.empty(0, np.uint64)
        self._offsets: Offsets = np.empty(0, np.int64)
        self._end = PAGE
        self._named = self._is_all = False
        try:
            self._temporary.unlink(missing_ok=True)
            fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise translate(error, path) from error
        self._file = os.fdopen(fd, "r+b", buffering=0)

    def add(self, runs: Runs, contents: memoryview) -> None:
        """Append ranges whose contents are back to back."""
        pages = expand(runs)
        self._write(contents, self._end)
        offsets = self._end + np.arange(len(pages), dtype=np.int64) * PAGE
        self._end += len(contents)
        self._index(pages, offsets)

    def add_zero(self, runs: Runs) -> None:
        pages = expand(runs)
        self._index(pages, np.full(len(pages), ZERO, np.int64))

    def void(self, ranges: Runs) -> None:
        """Forget what was added so far in these ranges."""
        keep = ~inside(self._pages, ranges)
        self._pages, self._offsets = self._pages[keep], self._offsets[keep]

    def _index(self, pages: Pages, offsets: Offsets) -> None:
        self._pages = np.concatenate((self._pages, pages))
        self._offsets = np.concatenate((self._offsets, offsets))

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        try:
            while len(view):
                n = os.pwrite(self._file.fileno(), view[: 1 << 30], offset)
                view, offset = view[n:], offset + n
        except OSError as error:
            raise translate(error, self.path) from error

    def finish(
        self,
        describe: Callable[[int, int], ImageFacts],
        notes: bytes,
        regions: list[Region],
        key: bytes,
    ) -> str:
        """Write notes, headers and digest: the file is whole, and not on disk yet.

        Args:
            describe: gets the number of pages and of content bytes; returns what the JSON is to say.
            notes: thread and file notes.
            regions: the mappings, for segment flags.
            key: of the digest; empty for none.

        Returns:
            The digest in hex.

        Raises:
            StorageError: the disk is full or broken.
        """
        self._pages, self._offsets = latest(self._pages, self._offsets)
        content = int((self._offsets != ZERO).sum()) * PAGE
        facts = describe(len(self._pages), content)
        digest_note = note(NOTE_NAME, NOTE_DIGEST, bytes(DIGEST_SIZE))
        # Behind the fixed head and the padded name.
        digest_at = self._end + 12 + (len(NOTE_NAME) + 1 + 3) // 4 * 4
        body = digest_note + note(NOTE_NAME, NOTE_META, json.dumps(facts.to_json()).encode()) + notes
        headers = self._headers(regions, len(body))
        phoff = self._end + len(body)
        phoff += -phoff % 8
        try:
            self._write(body, self._end)
            self._write(headers.tobytes(), phoff)
            self._write(extra_section(len(headers)), phoff + headers.nbytes)
            self._write(elf_header(phoff, len(headers), phoff + headers.nbytes), 0)
            digest = file_digest(self._file, digest_at, key)
            self._write(digest, digest_at)
        except OSError as error:
            raise translate(error, self.path) from error
        return digest.hex()

    def sync(self) -> None:
        """Bring the contents to disk. Raises: StorageError: that failed."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise translate(error, self.path) from error

    def rename(self) -> None:
        """Give the file its name. Raises: StorageError: that failed."""
        try:
            self._is_all = self._give_way()
            self._temporary.replace(self.path)
            self._named = True
        except OSError as error:
            raise translate(error, self.path) from error

    def sync_name(self) -> None:
        """Bring the name to disk. Raises: StorageError: that failed."""
        try:
            sync_directory(self.path.parent)
        except OSError as error:
            raise translate(error, self.path) from error

    def make_safe(self) -> None:
        """`sync`, `rename` and `sync_name`. Raises: StorageError: one of them failed."""
        self.sync()
        self.rename()
        self.sync_name()

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
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Drop everything, even the file that has its name already, unless that is all there is."""
        self.abort()
        if self._named and not self._is_all:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
