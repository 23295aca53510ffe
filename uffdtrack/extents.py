"""Pages that are in memory of ours, by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from uffdtrack._sys import ffi, lib
from uffdtrack.copies import Checks, Contents
from uffdtrack.errors import InvalidInputError
from uffdtrack.runs import PAGE, Mask, Pages, Rows


class Extents:
    """Memory of ranges of pages, which stays where it is."""

    def __init__(self, parts: Sequence[tuple[int, Contents]]) -> None:
        """Args: parts: the number of the first page, and the pages, contiguous."""
        self._parts = [pages for _, pages in parts]  # they must not go before us
        self._array = np.array([(first, len(pages), pages.ctypes.data) for first, pages in parts], np.uint64)
        self._of = ffi.from_buffer("ut_extent[]", self._array), len(parts)

    def __contains__(self, pages: Pages) -> bool:
        """Whether all of some pages are here."""
        return bool(lib.ut_have_pages(*self._of, *_numbers(pages)))

    def take(self, pages: Pages, out: Contents) -> tuple[Mask, int]:
        """Copy those of some pages that are not zeros.

        Args:
            out: contiguous, with room for all; they are back to back then.

        Returns:
            Which are not zeros, and how many that are.

        Raises:
            InvalidInputError: one is not here.
        """
        assert len(out) >= len(pages)
        full = np.empty(len(pages), bool)
        to = ffi.from_buffer("uint8_t[]", out), ffi.from_buffer("uint8_t[]", full)
        taken = lib.ut_take_pages(*self._of, *_numbers(pages), *to)
        if taken < 0:
            raise InvalidInputError("it has no such page")
        return full, int(taken)

    def put(self, pages: Pages, data: npt.NDArray[np.uint8], places: Rows) -> None:
        """Write some pages, all of which are here.

        Args:
            data: shape (bytes,): it has their contents.
            places: where in `data` each page begins; -1: it is zeros.
        """
        assert pages in self and len(places) == len(pages)
        assert not len(places) or (int(places.max()) + PAGE <= len(data) and int(places.min()) >= -1)
        at = ffi.from_buffer("int64_t[]", np.ascontiguousarray(places, np.int64))
        lib.ut_put_pages(*self._of, *_numbers(pages), ffi.from_buffer("uint8_t[]", data), at)

    def xor(self, pages: Pages, differences: bytes, checks: Checks | None) -> int | None:
        """XOR differences, back to back, into some pages. If they do not fit, nothing has changed.

        Args:
            differences: b"" if the pages do not change.
            checks: what `page_checks` gives for them then; None: it is not looked at.

        Returns:
            None, or the index of one that has another check.

        Raises:
            ValueError: the differences are damaged, or a page is not here.
        """
        numbers, n = _numbers(pages)
        wanted = ffi.NULL if checks is None else ffi.from_buffer("uint64_t[]", checks)
        from_, size = ffi.from_buffer("uint8_t[]", differences), len(differences)
        done = int(lib.ut_xor_pages(*self._of, numbers, wanted, n, from_, size))
        if done < 0:
            raise ValueError("differences are damaged, or of pages that it does not have")
        return done if done < n else None


def _numbers(pages: Pages) -> tuple[Any, int]:
    return ffi.from_buffer("uint64_t[]", np.ascontiguousarray(pages, np.uint64)), len(pages)
