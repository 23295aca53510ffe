"""One epoch's file: an ELF core with the pages, registers and facts of one instant.

Layout: ELF header, page contents from offset 4096 on, notes, program headers, and one section header
where more than 65534 program headers need it (PN_XNUM, elf(5)). A PT_LOAD without file bytes is memory
that holds zeros. Notes of our own carry the name "uffdtrack": `NOTE_META` is JSON, `NOTE_DIGEST` the
digest of the whole file, taken with its own 32 bytes as zeros, `NOTE_RSEQ` what a thread has registered with
rseq(2), behind the notes of that thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from checkpoint.errors import ImageError
from checkpoint.files import identity, malformed, open_regular, sync_directory, translate
from uffdtrack import PAGE, Region, Rseq, Runs, ThreadState
from uffdtrack.errors import InvalidInputError
from uffdtrack.runs import Pages, expand, inside, latest

SCHEMA = "uffdtrack/image/1"
NOTE_NAME = b"uffdtrack"
NOTE_META, NOTE_DIGEST = 0x75660001, 0x75660002
NOTE_RSEQ = 0x75660005
NT_PRSTATUS, NT_FPREGSET, NT_PRPSINFO, NT_AUXV = 1, 2, 3, 6
NT_X86_XSTATE, NT_FILE = 0x202, 0x46494C45
PN_XNUM = 0xFFFF
DIGEST_SIZE = 32
ZERO = -1
"""A page's place in a file where it holds zeros and so has none."""

Offsets = npt.NDArray[np.int64]

PHDR = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("vaddr", "<u8"),
        ("paddr", "<u8"),
        ("filesz", "<u8"),
        ("memsz", "<u8"),
        ("align", "<u8"),
    ]
)
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_PRSTATUS = struct.Struct("<3ihxxQQ4i64x216sixxxx")
_PRPSINFO = struct.Struct("<4bxxxxQII4i16s80s")
_RSEQ = struct.Struct("<QII")


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """One ELF note: head, name and data, each padded to 4 bytes (elf(5))."""
    name += b"\0"
    head = struct.pack("<III", len(name), len(data), kind)
    return head + name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4)


def thread_notes(threads: list[ThreadState], process: dict[str, Any]) -> bytes:
    """NT_PRSTATUS, NT_PRPSINFO (once), NT_FPREGSET, NT_X86_XSTATE, the order the kernel writes; then ours."""
    out: list[bytes] = []
    family = (process["ppid"], process["pgrp"], process["sid"])
    for i, thread in enumerate(t for t in threads if not t.worker):
        status = _PRSTATUS.pack(0, 0, 0, 0, 0, thread.sigmask, thread.tid, *family, thread.regs, 1)
        out.append(note(b"CORE", NT_PRSTATUS, status))
        if i == 0:
            info = _PRPSINFO.pack(
                0, ord("R"), 0, 0, 0, process["uid"], process["gid"], process["pid"], *family,
                process["comm"].encode(errors="surrogateescape")[:15],
                process["cmdline"].encode(errors="surrogateescape")[:79],
            )  # fmt: skip
            out.append(note(b"CORE", NT_PRPSINFO, info))
        out.append(note(b"CORE", NT_FPREGSET, thread.xstate[:512]))
        out.append(note(b"LINUX", NT_X86_XSTATE, thread.xstate))
        if thread.rseq is not None:
            out.append(note(NOTE_NAME, NOTE_RSEQ, _RSEQ.pack(*thread.rseq)))
    return b"".join(out)


def file_note(regions: list[Region]) -> bytes:
    """NT_FILE: which file is mapped where."""
    files = [r for r in regions if r.name.startswith("/") and r.inode]
    data = struct.pack("<QQ", len(files), PAGE)
    data += b"".join(struct.pack("<QQQ", r.start, r.end, r.offset // PAGE) for r in files)
    data += b"".join(r.name.encode(errors="surrogateescape") + b"\0" for r in files)
    return note(b"CORE", NT_FILE, data)


_FLAGS = {r + w + x: 4 * (r == "r") + 2 * (w == "w") + (x == "x") for r in "r-" for w in "w-" for x in "x-"}
"""Of an ELF segment (PF_R 4, PF_W 2, PF_X 1), by the permissions of the mapping."""


def region_flags(regions: list[Region], addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """ELF segment flags of the mapping at each address."""
    if not regions:
        return np.zeros(len(addresses), np.uint32)
    starts = np.array([r.start for r in regions], np.uint64)
    flags = np.array([_FLAGS.get(r.permissions[:3], 0) for r in regions], np.uint32)
    return flags[np.maximum(np.searchsorted(starts, addresses, side="right") - 1, 0)]


def elf_header(phoff: int, phnum: int, shoff: int) -> bytes:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    many = phnum >= PN_XNUM
    return _EHDR.pack(
        ident, 4, 62, 1, 0, phoff, shoff if many else 0, 0, 64, 56,
        PN_XNUM if many else phnum, 64, 1 if many else 0, 0,
    )  # fmt: skip


def extra_section(phnum: int) -> bytes:
    return _SHDR.pack(0, 0, 0, 0, 0, 0, 0, phnum, 0, 0) if phnum >= PN_XNUM else b""


def file_digest(file: Any, digest_at: int, key: bytes) -> bytes:
    """BLAKE2b-256 of an open file with the 32 bytes at `digest_at` taken as zeros."""
    size = os.fstat(file.fileno()).st_size
    state = hashlib.blake2b(key=key, digest_size=DIGEST_SIZE)
    if size:
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
            memoryview(whole) as view,
        ):
            state.update(view[:digest_at])
            state.update(bytes(DIGEST_SIZE))
            state.update(view[digest_at + DIGEST_SIZE :])
    return state.digest()


class EpochWriter:
    """Writes one epoch to a temporary file; it takes its name when it is whole and on disk.

    Contents may be added in parts; what is added later replaces what is there for the same page.

    Args:
        path: the name that the file gets.
        before_rename: called when the file is on disk, right before it takes its name.
    """

    def __init__(self, path: Path, before_rename: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._before_rename = before_rename
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._pages: Pages = np.empty(0, np.uint64)
        self._offsets: Offsets = np.empty(0, np.int64)
        self._end = PAGE
        self._named = False
        try:
            self._temporary.unlink(missing_ok=True)
            fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise translate(error, path) from error
        self._file = os.fdopen(fd, "r+b", buffering=0)

    def add(self, runs: Runs, contents: memoryview) -> None:
        """Append ranges whose contents stand one behind the other."""
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
        describe: Callable[[int, int], dict[str, Any]],
        notes: bytes,
        regions: list[Region],
        key: bytes,
    ) -> tuple[dict[str, Any], str]:
        """Notes, headers, digest: all is written, and not on disk yet.

        Args:
            describe: gets the number of pages and of content bytes; returns the facts to store.
            notes: thread and file notes.
            regions: the mappings, for segment flags.
            key: of the digest; empty for none.

        Returns:
            The facts and the digest in hex.

        Raises:
            StorageError: the disk is full or broken.
        """
        self._pages, self._offsets = latest(self._pages, self._offsets)
        content = int((self._offsets != ZERO).sum()) * PAGE
        meta = describe(len(self._pages), content)
        digest_note = note(NOTE_NAME, NOTE_DIGEST, bytes(DIGEST_SIZE))
        # Behind the fixed head and the padded name.
        digest_at = self._end + 12 + (len(NOTE_NAME) + 1 + 3) // 4 * 4
        body = digest_note + note(NOTE_NAME, NOTE_META, json.dumps(meta).encode()) + notes
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
        return meta, digest.hex()

    def sync(self) -> None:
        """The contents are on disk. Raises: StorageError: they are not."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise translate(error, self.path) from error

    def rename(self) -> None:
        """It takes its name. Raises: StorageError: it has none."""
        try:
            self._before_rename()
            self._temporary.replace(self.path)
            self._named = True
        except OSError as error:
            raise translate(error, self.path) from error

    def sync_name(self) -> None:
        """The name is on disk. Raises: StorageError: it is not."""
        try:
            sync_directory(self.path.parent)
        except OSError as error:
            raise translate(error, self.path) from error

    def make_safe(self) -> None:
        """Raises: StorageError: as `sync`, `rename` and `sync_name`, which are what this does."""
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
        """Drop everything, the file that has taken its name too."""
        self.abort()
        if self._named:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


class EpochFile:
    """An epoch of a listed name, read back. Opening parses; `verify` says whether the bytes are those that
    were written.

    Attributes:
        meta: the stored facts, see docs/image.md.
        pages, offsets: page numbers, sorted, and where each is in the file, `ZERO` for zeros.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with malformed(path):
            try:
                file = open_regular(path)
            except FileNotFoundError as error:
                raise self._replaced() from error
            with file:
                self._identity = identity(file)
                self._load(file)

    def open(self) -> BinaryIO:
        """The file that was parsed, opened again: a long chain has more files than we may hold open.

        Raises:
            InvalidInputError: another one has its name now, or none.
            PermissionDeniedError, ImageError: it cannot be read.
        """
        with malformed(self.path):
            with contextlib.suppress(FileNotFoundError):
                file = open_regular(self.path)
                if identity(file) == self._identity:
                    return file
                file.close()
        raise self._replaced()

    def _replaced(self) -> InvalidInputError:
        return InvalidInputError(
            f"{self.path} was replaced or removed while it was read: another uffdtrack is at work in that "
            "directory; try again"
        )

    def _load(self, file: Any) -> None:
        self._size = os.fstat(file.fileno()).st_size
        head = file.read(64)
        if len(head) < 64:
            raise ValueError(f"it is cut off: {len(head)} bytes" if head else "it is empty")
        fields = _EHDR.unpack(head)
        if fields[0][:6] != b"\x7fELF\x02\x01" or fields[1] != 4 or fields[2] != 62:
            raise ValueError("not an ELF core of x86-64")
        phoff, shoff, phnum = fields[5], fields[6], fields[10]
        if phnum == PN_XNUM:
            file.seek(shoff)
            phnum = _SHDR.unpack(file.read(64))[7]
        if phoff + phnum * PHDR.itemsize > self._size or not phnum:
            raise ValueError("its program headers are cut off")
        file.seek(phoff)
        headers = np.frombuffer(file.read(phnum * PHDR.itemsize), PHDR)
        if headers[0]["type"] != 4 or (headers[1:]["type"] != 1).any():
            raise ValueError("not a checkpoint's program headers")
        self._load_segments(headers[1:])
        notes_at, size = int(headers[0]["offset"]), int(headers[0]["filesz"])
        if notes_at + size > self._size:
            raise ValueError("its notes are cut off")
        file.seek(notes_at)
        self._load_notes(file.read(size), notes_at)

    def _load_segments(self, load: npt.NDArray[Any]) -> None:
        zero = load["filesz"] == 0
        ends = load["offset"] + load["filesz"]
        unaligned = (load["vaddr"] | load["memsz"]) % PAGE != 0
        wrong = unaligned | (~zero & (load["filesz"] != load["memsz"])) | (ends > self._size)
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
        before = np.repeat(np.cumsum(counts) - counts, counts)
        within = (np.arange(len(self.pages)) - before) * PAGE
        self.offsets = np.repeat(starts, counts) + np.where(np.repeat(zero, counts), 0, within)

    def _load_notes(self, data: bytes, at: int) -> None:
        self.notes: list[tuple[bytes, int, bytes]] = []
        self._digest_at = -1
        pos = 0
        while pos < len(data):
            name_size, size, kind = struct.unpack_from("<III", data, pos)
            name_at = pos + 12
            data_at = name_at + (name_size + 3) // 4 * 4
            pos = data_at + (size + 3) // 4 * 4
            if pos > len(data):
                raise ValueError("a note is cut off")
            name = data[name_at : name_at + name_size].rstrip(b"\0")
            self.notes.append((name, kind, data[data_at : data_at + size]))
            if (name, kind, size) == (NOTE_NAME, NOTE_DIGEST, DIGEST_SIZE):
                self._digest_at = at + data_at
        own = {kind: data for name, kind, data in self.notes if name == NOTE_NAME}
        if self._digest_at < 0:
            raise ValueError("it has no digest")
        self.digest = own[NOTE_DIGEST].hex()
        self.meta: dict[str, Any] = json.loads(own[NOTE_META])
        if not isinstance(self.meta, dict) or self.meta.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        self.epoch = int(self.meta["epoch"])
        self.parent = str(self.meta["parent"])
        self.regions = [Region(*fields) for fields in self.meta["regions"]]
        self.reset: Runs = np.array(self.meta["reset"], np.uint64).reshape(-1, 2)

    def verify(self, key: bytes) -> None:
        """Raises: ImageError: the file is not what was written, or the key is another."""
        with malformed(self.path), self.open() as file:
            found = file_digest(file, self._digest_at, key)
        if hmac.compare_digest(found.hex(), self.digest):
            return
        if bool(self.meta.get("keyed")) != bool(key):
            hint = "was written with a key: give it by --key-file" if not key else "has no key"
            raise ImageError(f"{self.path} {hint}")
        raise ImageError(
            f"{self.path} is damaged: its contents do not match its digest"
            + (" (or the key is another)" if key else "")
        )

    @property
    def compacted(self) -> bool:
        """A base that holds what older epochs held."""
        return bool(self.meta.get("base") and self.meta.get("replaces"))

    @cached_property
    def threads(self) -> list[ThreadState]:
        """The stored threads that have user registers."""
        states: list[ThreadState] = []
        with malformed(self.path):
            for name, kind, data in self.notes:
                if (name, kind) == (b"CORE", NT_PRSTATUS):
                    fields = _PRSTATUS.unpack(data)
                    states.append(ThreadState(fields[6], fields[10], b"", fields[5], False))
                elif (name, kind) == (b"LINUX", NT_X86_XSTATE):
                    states.append(replace(states.pop(), xstate=data))
                elif (name, kind) == (NOTE_NAME, NOTE_RSEQ):
                    states.append(replace(states.pop(), rseq=Rseq(*_RSEQ.unpack(data))))
        return states
