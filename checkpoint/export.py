"""Merging a chain: into one full ELF core, or into a new base."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpoint.branches import line_to, needed_below
from checkpoint.chain import Chain
from checkpoint.deltas import NOTE_DELTAS
from checkpoint.digest import KINDS
from checkpoint.directory import stretches
from checkpoint.elf import (
    NOTE_META,
    NOTE_NAME,
    PHDR,
    elf_header,
    extra_section,
    note,
    region_flags,
)
from checkpoint.epoch_writer import EpochWriter
from checkpoint.facts import ImageFacts
from checkpoint.files import translate, write_all
from checkpoint.heads import NOTE_HEADS, head_of, heads_note, stored_heads
from checkpoint.image import EpochFile
from checkpoint.objects import increment, resolve
from checkpoint.view import View, check_all_deltas
from uffdtrack import PAGE, Region
from uffdtrack.errors import InvalidInputError, UffdtrackError
from uffdtrack.runs import batches, between, run_starts, to_runs

HOLE = 64 << 20
"""Zero memory between stored pages up to this size becomes a hole in the file; more is left out, like
reserved memory that was never touched in the kernel's own cores."""


def kept_notes(epoch: EpochFile) -> bytes:
    """The notes of threads and of a VM's vCPUs: all but those about the file itself."""
    own = [(NOTE_NAME, kind) for kind in (*KINDS, NOTE_META, NOTE_HEADS, NOTE_DELTAS)]
    return b"".join(note(n, k, d) for n, k, d in epoch.notes if (n, k) not in own)


def export(view: View, path: Path, force: bool) -> int:
    """Write one ELF core with the whole memory of the view; returns its size in bytes.

    The core leaves out memory of files that was never written (NT_FILE names them), as the kernel's cores do
    (core(5)), except for the first page of each, by which debuggers know the file.

    Raises:
        InvalidInputError: the file exists and `force` is not given, or is no regular file.
        StorageError: we could not write it; no file is left.
    """
    _check_place(path, force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise translate(error, path) from error
    try:
        with os.fdopen(fd, "r+b", buffering=0) as file:
            size = _write_core(view, file.fileno())
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise translate(error, path) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def _check_place(path: Path, force: bool) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise translate(error, path) from error
    if not stat.S_ISREG(mode):
        raise InvalidInputError(f"{path} is not a regular file")
    if not force:
        raise InvalidInputError(f"{path} exists; --force replaces it")


def _write_core(view: View, fd: int) -> int:
    notes = kept_notes(view.epoch)
    heads = _heads(view)
    pieces = [piece for region in view.epoch.regions for piece in _pieces(view, region, heads)]
    phnum = len(pieces) + 1
    phoff = 64
    notes_at = phoff + phnum * PHDR.itemsize + 64
    at = (notes_at + len(notes) + PAGE - 1) // PAGE * PAGE
    headers = np.zeros(phnum, PHDR)
    headers[0] = (4, 4, notes_at, 0, 0, len(notes), 0, 4)
    for i, (start, end, filled) in enumerate(pieces, 1):
        headers[i] = (1, 0, at, start, 0, filled, end - start, PAGE)
        at += filled
    headers["flags"][1:] = region_flags(view.epoch.regions, headers["vaddr"][1:])
    os.ftruncate(fd, at)
    write_all(fd, [elf_header(phoff, phnum, phoff + headers.nbytes)], 0)
    write_all(fd, [headers.tobytes()], phoff)
    write_all(fd, [extra_section(phnum)], phoff + headers.nbytes)
    write_all(fd, [notes], notes_at)
    for header in headers[1:]:
        start, filled, place = (int(header[k]) for k in ("vaddr", "filesz", "offset"))
        _write_pages(view, fd, start, filled, place)
    _write_file_heads(view, fd, headers, heads)
    return at


def _heads(view: View) -> dict[int, bytes]:
    """The first pages of ELF files, by the start of their mappings."""
    stored = stored_heads(view.sources)
    files = view.epoch.facts.files
    found = {region.start: head_of(region, stored, files) for region in view.epoch.regions}
    return {start: head for start, head in found.items() if head}


def _pieces(view: View, region: Region, heads: dict[int, bytes]) -> list[tuple[int, int, int]]:
    """A mapping as segments: start, end, and how many bytes the file has."""
    if region.special:
        return []
    addresses = (view.pages[view.of_region(region)] * np.uint64(PAGE)).astype(np.int64)
    # Without contents of its own, memory of a file is the file's.
    hole = 0 if not region.anonymous else HOLE
    if not len(addresses):
        head = PAGE if region.start in heads else 0
        return split(region.start, region.end, head)
    gaps = np.flatnonzero(np.diff(addresses) > PAGE + hole)
    starts = addresses[np.append(0, gaps + 1)].tolist()
    ends = (addresses[np.append(gaps, len(addresses) - 1)] + PAGE).tolist()
    if starts[0] - region.start <= hole:
        starts[0] = region.start
    if region.end - ends[-1] <= hole:
        ends[-1] = region.end
    pieces = []
    at = region.start
    for start, end in zip(starts, ends, strict=True):
        if at < start:
            head = PAGE if at in heads else 0
            pieces += split(at, start, head)
        pieces.append((start, end, end - start))
        at = end
    if at < region.end:
        pieces.append((at, region.end, 0))
    return pieces


def split(start: int, end: int, head: int) -> list[tuple[int, int, int]]:
    """A stretch without contents, except that the file has its first `head` bytes."""
    if not head:
        return [(start, end, 0)]
    pieces = [(start, start + head, head)]
    if start + head < end:
        pieces.append((start + head, end, 0))
    return pieces


def _write_file_heads(view: View, fd: int, headers: Any, heads: dict[int, bytes]) -> None:
    stored = set(view.pages.tolist())
    at = {int(h["vaddr"]): int(h["offset"]) for h in headers[1:] if h["filesz"]}
    for start, head in heads.items():
        if start in at and start // PAGE not in stored:
            write_all(fd, [head], at[start])


def _write_pages(view: View, fd: int, start: int, size: int, place: int) -> None:
    for part in batches(view.pages[between(view.pages, start, start + size)]):
        contents = view.read(part)
        first = run_starts(part)
        for a, b in zip(first, np.append(first[1:], len(part)), strict=True):
            offset = place + int(part[a]) * PAGE - start
            write_all(fd, [contents[a:b].tobytes()], offset)


def compact(chain: Chain, before: int, key: bytes) -> list[int]:
    """Make epoch `before` the base, with all that the older ones have; returns those removed.

    The new base keeps its old digest as `replaces`, since its children name that. Epochs that do not come
    from it stay, with all that they come from. A crash leaves a chain that verifies, with what was merged
    still there at worst: that is no part of it, and the next compaction removes it.
    """
    files = chain.verify(key)
    check_all_deltas(files)  # what is merged is gone
    view = chain.view(before, files)
    if view.epoch.unknown:
        raise InvalidInputError(
            f"{view.epoch.path} is of a newer uffdtrack, which has stored {', '.join(view.epoch.unknown)}: "
            "compact it with that one"
        )
    needed = needed_below(files, before)
    merged = [file for file in line_to(files, before)[:-1] if file.epoch not in needed]
    if view.epoch.parent_epoch is not None and before > files[0].epoch:
        _merge(view, key, _numbers(files[0], merged) if needed else None)
    left = {file.epoch for file in files} - {file.epoch for file in merged}
    older = [number for number in chain.epochs if number not in left]
    # The oldest last: what is left after a crash still has its base.
    for number in reversed(older):
        try:
            chain.path(number).unlink()
        except OSError as error:
            raise translate(error, chain.path(number)) from error
    return older


def _numbers(oldest: EpochFile, merged: list[EpochFile]) -> list[list[int]]:
    """The numbers of epochs, and of those that they were made of, see `ImageFacts.merged`.

    Args:
        oldest: of the chain; it stands for all numbers below its own, unless it says which.
    """
    made_of = [(first, last) for file in merged for first, last in file.facts.merged or ()]
    if oldest in merged and oldest.facts.merged is None:
        made_of.append((0, oldest.epoch))
    return [list(pair) for pair in stretches([*made_of, *((file.epoch, file.epoch) for file in merged)])]


def _merge(view: View, key: bytes, merged: list[list[int]] | None) -> None:
    """Write the epoch of a view anew, as a base with all of its memory.

    Args:
        merged: see `ImageFacts`.
    """
    old = view.epoch
    # A base has all of the descriptors; the epochs behind it have what changed.
    objects = increment(None, resolve(file.facts.objects for file in view.own_sources))
    writer = EpochWriter(old.path, key)
    try:
        for part in batches(view.pages):
            contents = view.read(part)
            full = contents.any(axis=1)
            writer.add(to_runs(part[full]), contents[full].reshape(-1).data)
            writer.add_zero(to_runs(part[~full]))

        def describe(pages: int, content: int) -> ImageFacts:
            return replace(
                old.facts,
                base=True,
                parent="",
                parent_epoch=None,
                merged=merged,
                reset=[],
                keyed=writer.keyed,
                replaces=old.facts.replaces or old.digest,
                row={**old.facts.row, "base": True, "pages": pages, "bytes": content},
                objects=objects,
            )

        notes = kept_notes(old) + heads_note(stored_heads(view.sources))
        writer.finish(describe, notes, old.regions)
        writer.make_safe()
    except (UffdtrackError, OSError, struct.error):
        writer.abort()
        raise
