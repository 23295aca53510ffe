"""Pages that an image stores as XOR with what its parent has for them: many in one zstd frame.

The frames are behind the page contents. The note `NOTE_DELTAS` says where: how many frames and pages there
are (4 bytes each), then the frames (offset, size, pages), then the pages, in the order in which the frames
have them (number, and the XXH64 of its whole contents). A frame has for each page a bit for each 16 bytes,
and the XOR of those that differ; one of size 0 has pages that did not change.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import zstandard

from uffdtrack import DIFFERENCE, PAGE, Extents, page_checks, xor_differences
from uffdtrack.runs import Mask, Pages, Rows, equal_neighbours

NOTE_DELTAS = 0x75660007
PAGES = np.dtype([("page", "<u8"), ("check", "<u8")])
MOST = 1024
"""So many pages may be in a frame that is not empty; a writer puts fewer into one."""
FIRST = -2
"""The place (`Offsets`) of a file's delta n is FIRST - n."""
_HEAD = struct.Struct("<II")
_FRAME = struct.Struct("<QII")
"""Offset, size, how many pages."""
_MOST_WINDOW = 1 << 23
"""A frame that wants more memory than that is none of ours."""

Contents = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Coded:
    """Deltas that have no place in a file yet.

    Attributes:
        frames: with how many pages each has; b"" for pages that did not change.
        pages, checks: of all of them, in the order of the frames.
    """

    frames: list[tuple[bytes, int]]
    pages: Pages
    checks: npt.NDArray[np.uint64]

    @property
    def size(self) -> int:
        return sum(len(data) for data, _ in self.frames)

    def table(self, at: int) -> bytes:
        """The data of the note, if the frames begin at that offset."""
        frames = []
        for data, pages in self.frames:
            frames.append(_FRAME.pack(at, len(data), pages))
            at += len(data)
        rows = np.zeros(len(self.pages), PAGES)
        rows["page"], rows["check"] = self.pages, self.checks
        return _HEAD.pack(len(frames), len(rows)) + b"".join(frames) + rows.tobytes()


_DAMAGED = "a frame of deltas is damaged"
NO_DELTAS = Coded([], np.empty(0, np.uint64), np.empty(0, np.uint64))


class Deltas:
    """The deltas of one file.

    Attributes:
        pages: their page numbers.
        checks: of their contents.
    """

    def __init__(self, table: bytes, end: int) -> None:
        """Args:
        table: the data of the note.
        end: the frames are before this offset.

        Raises:
            ValueError, struct.error: it makes no sense.
        """
        frames, rows = _HEAD.unpack_from(table)
        at = _HEAD.size + frames * _FRAME.size
        if at + rows * PAGES.itemsize != len(table):
            raise ValueError("its table of deltas is cut off")
        self._frames = list(_FRAME.iter_unpack(table[_HEAD.size : at]))
        listed = np.frombuffer(table, PAGES, rows, at)
        self.pages: Pages = listed["page"].copy()
        self.checks: npt.NDArray[np.uint64] = listed["check"].copy()
        total = 0
        for offset, size, pages in self._frames:
            if offset + size > end:
                raise ValueError("its deltas are cut off")
            if not pages or (size and pages > MOST):
                raise ValueError("its table of deltas makes no sense")
            total += pages
        if total != rows:
            raise ValueError("its table of deltas makes no sense")
        ordered = np.sort(self.pages)
        if rows and (int(ordered[-1]) >= 1 << 52 or (ordered[1:] == ordered[:-1]).any()):
            raise ValueError("its deltas make no sense")

    @cached_property
    def unchanged(self) -> Mask:
        """Which of them change nothing."""
        return np.repeat(np.array([not size for _, size, _ in self._frames], bool), self._counts)

    @cached_property
    def _counts(self) -> Rows:
        """Of each frame how many pages it has."""
        return np.array([pages for _, _, pages in self._frames], np.int64)

    @cached_property
    def _firsts(self) -> Rows:
        """Of each frame the index of its first page."""
        return np.cumsum(self._counts) - self._counts

    def xor_into(self, file: BinaryIO, out: Contents, rows: Rows, deltas: Rows) -> None:
        """XOR deltas of this file into rows of `out`, one into each.

        Raises:
            ValueError, OSError: a frame is damaged, or cannot be read.
        """
        for into, data in self._differences(file, rows, deltas):
            if not xor_differences(out, into, data):
                raise ValueError(_DAMAGED)

    def merge_into(self, memory: Extents, data: Contents, decompressor: zstandard.ZstdDecompressor) -> None:
        """Apply all of them to memory that has the pages as the epoch before has them.

        Args:
            data: of the file.

        Raises:
            ValueError: a frame is damaged, or one does not fit. Then nothing has changed.
        """
        first, frames = 0, []
        for offset, size, pages in self._frames:
            unpacked = _unpack(decompressor, data[offset : offset + size].data, pages) if size else b""
            frames.append((slice(first, first + pages), unpacked))
            first += pages
        done: list[tuple[Pages, bytes]] = []
        try:
            for part, differences in frames:
                pages = self.pages[part]
                wrong = memory.xor(pages, differences, self.checks[part])
                if wrong is not None:
                    raise self._of_another_base(int(pages[wrong]))
                done.append((pages, differences))
        except BaseException:
            for pages, differences in done:
                memory.xor(pages, differences, None)
            raise

    def _differences(self, file: BinaryIO, rows: Rows, deltas: Rows) -> Iterator[tuple[Rows, bytes]]:
        """Of each frame with such deltas: where each is to go, and what `xor_differences` takes."""
        if not len(deltas):
            return
        frames = np.searchsorted(self._firsts, deltas, side="right") - 1
        order = np.argsort(frames, kind="stable")
        rows, deltas, frames = rows[order], deltas[order], frames[order]
        decompressor = new_decompressor()
        for part in equal_neighbours(frames):
            frame = int(frames[part.start])
            offset, size, pages = self._frames[frame]
            if size:
                into = np.full(pages, -1)
                into[deltas[part] - self._firsts[frame]] = rows[part]
                file.seek(offset)
                yield into, _unpack(decompressor, file.read(size), pages)

    def check(self, contents: Contents, rows: Rows, deltas: Rows) -> None:
        """Check that rows of `contents` are what these deltas were made of.

        Raises:
            ValueError: one is not: the delta's base is not the one that it was made with.
        """
        wrong = page_checks(contents, rows) != self.checks[deltas]
        if wrong.any():
            raise self._of_another_base(int(self.pages[deltas[wrong][0]]))

    @staticmethod
    def _of_another_base(page: int) -> ValueError:
        return ValueError(
            f"the page at {page * PAGE:#x} is a delta to other contents than the epochs before have"
        )


def new_decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW)


def _unpack(decompressor: zstandard.ZstdDecompressor, data: bytes | memoryview, pages: int) -> bytes:
    try:
        size = zstandard.frame_content_size(data)  # negative: it does not say
        if not 0 < size <= pages * DIFFERENCE:
            raise ValueError("a frame of deltas is damaged: it has no size that it can have")
        return bytes(decompressor.decompress(data))
    except zstandard.ZstdError as error:
        raise ValueError(f"a frame of deltas is damaged ({error})") from error


def deltas_of(notes: list[tuple[bytes, int, bytes]], name: bytes, end: int) -> Deltas | None:
    """The deltas of a file with these notes; `end`: as of `Deltas`."""
    found: list[Any] = [data for own, kind, data in notes if (own, kind) == (name, NOTE_DELTAS)]
    return Deltas(found[0], end) if found else None
