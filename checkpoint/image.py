"""One epoch's file: an ELF core with the pages, registers and facts of one instant.

Layout: ELF header, page contents from offset 4096 on, notes, program headers, and one section header
if more than 65534 program headers need it (PN_XNUM, elf(5)). A PT_LOAD without file bytes is memory
of zeros. Our own notes have the name "uffdtrack": `NOTE_META` is JSON, `NOTE_BLAKE3` the
digest of the whole file, taken with its own 32 bytes as zeros, `NOTE_RSEQ` what a thread has registered with
rseq(2), behind the notes of that thread.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from checkpoint import fast_json
from checkpoint.deltas import FIRST, NOTE_DELTAS, deltas_of
from checkpoint.digest import DIGEST_SIZE, KINDS, file_digest
from checkpoint.directory import not_as_written
from checkpoint.elf import (
    EHDR,
    NOTE_META,
    NOTE_NAME,
    NOTE_RSEQ,
    NT_PRSTATUS,
    NT_X86_XSTATE,
    PHDR,
    PN_XNUM,
    PRSTATUS,
    RSEQ,
    SHDR,
    ZERO,
)
from checkpoint.facts import ImageFacts
from checkpoint.files import identity, malformed, open_regular
from uffdtrack import PAGE, Region, Rseq, Runs, ThreadState
from uffdtrack.errors import InvalidInputError
from uffdtrack.runs import expand, latest, spread


class EpochFile:
    """A stored epoch, read back. Opening parses it; `verify` checks that the bytes are those that were
    written.

    Attributes:
        facts: what its JSON says; `unknown` are the keys that a newer version has stored.
        parent_epoch: the number of the epoch that it follows; None: it follows none.
        identity: tells the file from one that takes its name later.
        pages, offsets: page numbers, sorted, and where each is in the file, `ZERO` for zeros, from `FIRST`
            down for those that are deltas to the epoch before.
        deltas: None if there are none.
        size: of the file, in bytes.
        in_memory: its contents are in memory of ours, and in no file on disk.
    """

    in_memory = False

    def __init__(self, path: Path) -> None:
        self.path = path
        with malformed(path):
            try:
                file = open_regular(path)
            except FileNotFoundError as error:
                raise self._replaced() from error
            with file:
                self.identity = identity(file)
                self._load(file, os.fstat(file.fileno()).st_size)

    def open(self) -> BinaryIO:
        """Open the parsed file again: a long chain has more files than we may have open.

        Raises:
            InvalidInputError: another file has its name now, or none has.
            PermissionDeniedError, ImageError: we cannot read it.
        """
        with malformed(self.path):
            with contextlib.suppress(FileNotFoundError):
                file = open_regular(self.path)
                if identity(file) == self.identity:
                    return file
                file.close()
        raise self._replaced()

    def _replaced(self) -> InvalidInputError:
        return InvalidInputError(
            f"{self.path} was replaced or removed while it was read: another uffdtrack is at work in that "
            "directory; try again"
        )

    def data(self) -> npt.NDArray[np.uint8]:
        """The bytes of the file, shape (size,). Raises: as `open`."""
        with self.open() as file:
            return np.memmap(file, np.uint8, "r")

    def _load(self, file: BinaryIO, size: int) -> None:
        self.size = size
        head = file.read(64)
        if len(head) < 64:
            raise ValueError(f"it is cut off: {len(head)} bytes" if head else "it is empty")
        fields = EHDR.unpack(head)
        if fields[0][:6] != b"\x7fELF\x02\x01" or fields[1] != 4 or fields[2] != 62:
            raise ValueError("not an ELF core of x86-64")
        phoff, shoff, phnum = fields[5], fields[6], fields[10]
        if phnum == PN_XNUM:
            file.seek(shoff)
            phnum = SHDR.unpack(file.read(64))[7]
        if phoff + phnum * PHDR.itemsize > self.size or not phnum:
            raise ValueError("its program headers are cut off")
        file.seek(phoff)
        headers = np.frombuffer(file.read(phnum * PHDR.itemsize), PHDR)
        if headers[0]["type"] != 4 or (headers[1:]["type"] != 1).any():
            raise ValueError("not a checkpoint's program headers")
        self._load_segments(headers[1:])
        notes_at, size = int(headers[0]["offset"]), int(headers[0]["filesz"])
        if notes_at + size > self.size:
            raise ValueError("its notes are cut off")
        file.seek(notes_at)
        self._load_notes(file.read(size), notes_at)
        self._load_deltas(notes_at)

    def _load_segments(self, load: npt.NDArray[Any]) -> None:
        if not len(load):
            self.pages, self.offsets = np.empty(0, np.uint64), np.empty(0, np.int64)
            return
        zero = load["filesz"] == 0
        ends = load["offset"] + load["filesz"]
        unaligned = (load["vaddr"] | load["memsz"]) % PAGE != 0
        wrong = unaligned | (~zero & (load["filesz"] != load["memsz"])) | (ends > self.size)
        sizes = load["memsz"].astype(np.float64)
        if wrong.any() or (ends < load["offset"]).any() or sizes.sum() > 1 << 48:
            raise ValueError("its program headers make no sense")
        runs = np.stack((load["vaddr"], load["vaddr"] + load["memsz"]), axis=1)
        if (runs[1:, 0] < runs[:-1, 1]).any() or (runs[:, 1] <= runs[:, 0]).any():
            raise ValueError("its segments overlap")
        if sizes[zero].sum() > 1 << 42:
            raise ValueError("its zero segments are larger than a process")
        self.pages = expand(runs)
        counts = (load["memsz"] // PAGE).astype(np.int64)
        starts = np.where(zero, ZERO, load["offset"].astype(np.int64))
        within = spread(np.zeros_like(counts), counts) * PAGE
        self.offsets = np.repeat(starts, counts) + np.where(np.repeat(zero, counts), 0, within)

    def _load_deltas(self, end: int) -> None:
        self.deltas = deltas_of(self.notes, NOTE_NAME, end)
        if not self.deltas:
            return
        if not len(self.pages):
            order = np.argsort(self.deltas.pages)
            self.pages, self.offsets = self.deltas.pages[order], FIRST - order
            return
        pages = np.concatenate((self.pages, self.deltas.pages))
        offsets = np.concatenate((self.offsets, FIRST - np.arange(len(self.deltas.pages))))
        self.pages, self.offsets = latest(pages, offsets)
        if len(self.pages) < len(pages):
            raise ValueError("it has pages twice")

    def _load_notes(self, data: bytes, at: int) -> None:
        self.notes: list[tuple[bytes, int, bytes]] = []
        self._digest_at = -1
        for name, kind, note, data_at in split_notes(data):
            self.notes.append((name, kind, note))
            if name == NOTE_NAME and kind in KINDS and len(note) == DIGEST_SIZE:
                self._digest_at, self._digest_kind = at + data_at, kind
        own = {kind: data for name, kind, data in self.notes if name == NOTE_NAME}
        if self._digest_at < 0:
            raise ValueError("it has no digest")
        self.digest = own[self._digest_kind].hex()
        stored = fast_json.decode(own[NOTE_META])
        if not isinstance(stored, dict):
            raise ValueError("its facts are no object")
        known = ImageFacts.schema_of(stored, NOTE_DELTAS in own)
        if stored.get("schema") != known:
            newer = re.fullmatch(r"uffdtrack/image/\d+", str(stored.get("schema")))
            why = ": a newer uffdtrack may have written it, read it with that one" if newer else ""
            raise ValueError(f"its schema is not {known}{why}")
        self.facts = ImageFacts.of_json(stored)
        self.unknown = sorted(stored.keys() - ImageFacts.names())
        self.epoch = int(self.facts.epoch)
        self.parent = str(self.facts.parent)
        self.parent_epoch = self._parent_epoch()
        self._merged = [(int(first), int(last)) for first, last in self.facts.merged or ()]
        self.regions = [Region(*fields) for fields in self.facts.regions]
        self.reset: Runs = np.array(self.facts.reset, np.uint64).reshape(-1, 2)

    def _parent_epoch(self) -> int | None:
        if not self.parent:
            return None
        given = self.facts.parent_epoch
        if given is None:
            return self.epoch - 1
        if not 0 <= int(given) < self.epoch:
            raise ValueError(f"it cannot be the child of epoch {given}")
        return int(given)

    def is_made_of(self, epoch: int) -> bool:
        """Whether it is a base that has taken the place of that epoch, too; see `merged` of `ImageFacts`."""
        return any(first <= epoch <= last for first, last in self._merged)

    def verify(self, key: bytes) -> None:
        """Raises: ImageError: the file is not what was written, or the key is another."""
        with malformed(self.path):
            found = self._digested(key)
        if hmac.compare_digest(found.hex(), self.digest):
            return
        raise not_as_written(self.path, bool(self.facts.keyed), key)

    def _digested(self, key: bytes) -> bytes:
        with self.open() as file:
            return file_digest(file, self._digest_at, key, self._digest_kind)

    @property
    def compacted(self) -> bool:
        """Whether it is a base that has the contents of older epochs."""
        return bool(self.facts.base and self.facts.replaces)

    @cached_property
    def threads(self) -> list[ThreadState]:
        """The stored threads that have user registers."""
        states: list[ThreadState] = []
        with malformed(self.path):
            for name, kind, data in self.notes:
                if (name, kind) == (b"CORE", NT_PRSTATUS):
                    fields = PRSTATUS.unpack(data)
                    states.append(ThreadState(fields[6], fields[10], b"", fields[5], False))
                elif (name, kind) == (b"LINUX", NT_X86_XSTATE):
                    states.append(replace(states.pop(), xstate=data))
                elif (name, kind) == (NOTE_NAME, NOTE_RSEQ):
                    states.append(replace(states.pop(), rseq=Rseq(*RSEQ.unpack(data))))
        return states


def split_notes(data: bytes) -> Iterator[tuple[bytes, int, bytes, int]]:
    """ELF notes: name, kind, data, and where the data is.

    Raises:
        ValueError, struct.error: they are cut off.
    """
    pos = 0
    while pos < len(data):
        name_size, size, kind = struct.unpack_from("<III", data, pos)
        name_at = pos + 12
        data_at = name_at + (name_size + 3) // 4 * 4
        pos = data_at + (size + 3) // 4 * 4
        if pos > len(data):
            raise ValueError("a note is cut off")
        yield data[name_at : name_at + name_size].rstrip(b"\0"), kind, data[data_at : data_at + size], data_at
