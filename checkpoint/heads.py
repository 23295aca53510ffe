"""The first pages of mapped ELF files in an image: a note of records, device, inode and the page."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from checkpoint.elf import NOTE_NAME, note
from checkpoint.image import EpochFile
from uffdtrack import PAGE, Heads, Region

NOTE_HEADS = 0x75660004
_RECORD = struct.Struct(f"<IIQ{PAGE}s")


def heads_note(heads: Heads) -> bytes:
    """The note; b"" if there are no heads."""
    if not heads:
        return b""
    data = b"".join(
        _RECORD.pack(*(int(part, 16) for part in device.split(":")), inode, page)
        for (device, inode), page in sorted(heads.items())
    )
    return note(NOTE_NAME, NOTE_HEADS, data)


def stored_heads(files: Iterable[EpochFile]) -> Heads:
    """The heads that several epochs of a chain store."""
    heads: Heads = {}
    for file in files:
        for name, kind, data in file.notes:
            if (name, kind) == (NOTE_NAME, NOTE_HEADS):
                for major, minor, inode, page in _RECORD.iter_unpack(data):
                    heads[f"{major:02x}:{minor:02x}", inode] = page
    return heads


def is_file_of(region: Region, s: os.stat_result) -> bool:
    """Whether a file is the mapped one, and not another that has its name now, or has it here."""
    major, minor = (int(part, 16) for part in region.device.split(":"))
    if s.st_ino != region.inode:
        return False
    # stat(2) tells another device than the mapping where parts of one file system have their own (btrfs).
    return s.st_dev == os.makedev(major, minor) or not (major or os.major(s.st_dev))


def head_of(region: Region, heads: Heads, files: dict[str, list[int]]) -> bytes:
    """The first page of a mapped ELF file, b"" if we cannot get it.

    Args:
        heads: those that the chain has.
        files: the mapped files as they were, see `mapped_files`: if the chain does not have the page, we
            read it from the file of that name, if that is the same one, unchanged.
    """
    if not region.file_backed or region.offset or "r" not in region.permissions:
        return b""
    stored = heads.get((region.device, region.inode))
    if stored:
        return stored
    try:
        with Path(region.name).open("rb") as file:
            s = os.fstat(file.fileno())
            known = [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns]
            head = file.read(PAGE) if is_file_of(region, s) and files.get(region.name) == known else b""
    except (OSError, ValueError):
        return b""
    return head if head.startswith(b"\x7fELF") else b""
