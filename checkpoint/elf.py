"""The parts of an ELF core (elf(5)), and our own notes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from checkpoint.facts import ProcessFacts
from uffdtrack import PAGE, Region, ThreadState

NOTE_NAME = b"uffdtrack"
NOTE_META = 0x75660001
NOTE_RSEQ = 0x75660005
NT_PRSTATUS, NT_FPREGSET, NT_PRPSINFO, NT_AUXV = 1, 2, 3, 6
NT_X86_XSTATE, NT_FILE = 0x202, 0x46494C45
PN_XNUM = 0xFFFF
ZERO = -1
"""The place of a page of zeros, which the file does not store."""
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
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR = struct.Struct("<IIQQQQIIQQ")
PRSTATUS = struct.Struct("<3ihxxQQ4i64x216sixxxx")
PRPSINFO = struct.Struct("<4bxxxxQII4i16s80s")
RSEQ = struct.Struct("<QII")


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """One ELF note: head, name and data, each padded to 4 bytes (elf(5))."""
    name += b"\0"
    head = struct.pack("<III", len(name), len(data), kind)
    return head + name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4)


def thread_notes(threads: list[ThreadState], process: ProcessFacts) -> bytes:
    """NT_PRSTATUS, NT_PRPSINFO (once), NT_FPREGSET, NT_X86_XSTATE, the order the kernel writes; then ours."""
    out: list[bytes] = []
    family = (process.ppid, process.pgrp, process.sid)
    for i, thread in enumerate(t for t in threads if not t.worker):
        status = PRSTATUS.pack(0, 0, 0, 0, 0, thread.sigmask, thread.tid, *family, thread.regs, 1)
        out.append(note(b"CORE", NT_PRSTATUS, status))
        if i == 0:
            info = PRPSINFO.pack(
                0, ord("R"), 0, 0, 0, process.uid, process.gid, process.pid, *family,
                process.comm.encode(errors="surrogateescape")[:15],
                process.cmdline.encode(errors="surrogateescape")[:79],
            )  # fmt: skip
            out.append(note(b"CORE", NT_PRPSINFO, info))
        out.append(note(b"CORE", NT_FPREGSET, thread.xstate[:512]))
        out.append(note(b"LINUX", NT_X86_XSTATE, thread.xstate))
        if thread.rseq is not None:
            out.append(note(NOTE_NAME, NOTE_RSEQ, RSEQ.pack(*thread.rseq)))
    return b"".join(out)


@dataclass(frozen=True, slots=True)
class Notes:
    """The notes of an epoch, made when they are needed.

    Attributes:
        rest: those that follow the threads'; the same object as in the epoch before if they are the same.
    """

    threads: list[ThreadState]
    process: ProcessFacts
    rest: bytes

    def encode(self) -> bytes:
        """As they are in an image."""
        return thread_notes(self.threads, self.process) + self.rest


def file_note(regions: list[Region]) -> bytes:
    """NT_FILE: which file is mapped where."""
    files = [r for r in regions if r.name.startswith("/") and r.inode]
    data = struct.pack("<QQ", len(files), PAGE)
    data += b"".join(struct.pack("<QQQ", r.start, r.end, r.offset // PAGE) for r in files)
    data += b"".join(r.name.encode(errors="surrogateescape") + b"\0" for r in files)
    return note(b"CORE", NT_FILE, data)


_FLAGS = {r + w + x: 4 * (r == "r") + 2 * (w == "w") + (x == "x") for r in "r-" for w in "w-" for x in "x-"}
"""Flags of an ELF segment (PF_R 4, PF_W 2, PF_X 1), by the permissions of the mapping."""


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
    return EHDR.pack(
        ident, 4, 62, 1, 0, phoff, shoff if many else 0, 0, 64, 56,
        PN_XNUM if many else phnum, 64, 1 if many else 0, 0,
    )  # fmt: skip


def extra_section(phnum: int) -> bytes:
    return SHDR.pack(0, 0, 0, 0, 0, 0, 0, phnum, 0, 0) if phnum >= PN_XNUM else b""
