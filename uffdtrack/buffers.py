"""Buffers of copies, which a caller may keep while further copies are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uffdtrack._sys import check_own, ffi, lib

_NONE = ffi.new("ut_buffer *")
_READY_SIZE = 8 << 20
"""Of a new buffer so many bytes are there before the stop that fills it."""
_SPARE_SIZE = 256 << 20
"""Buffers that are no longer lent are kept up to so many bytes."""


def _new() -> Any:
    return ffi.gc(ffi.new("ut_buffer *"), lib.ut_buffer_free)


class Buffers:
    """Those of one address space that are not in use."""

    def __init__(self) -> None:
        self._spare: list[Any] = []

    def lend(self, holder: Any, name: str, size: int) -> Callable[[], None]:
        """Put another buffer into a place of the core's; the one that was there stays as it is until the
        returned function is called, in any thread.

        Args:
            holder, name: the struct, and its field.
            size: bytes that the next copy may have.
        """
        spare = self._spare.pop() if self._spare else _new()
        lent = _new()
        try:
            if spare.cap < min(size, _READY_SIZE):
                check_own(lib.ut_buffer_ready(spare, min(size, _READY_SIZE)), "make room for pages")
        except BaseException:
            self._spare.append(spare)
            raise
        lent[0] = getattr(holder, name)
        setattr(holder, name, spare[0])
        spare[0] = _NONE[0]

        def give_back() -> None:
            if sum(spare.cap for spare in self._spare) + lent.cap <= _SPARE_SIZE:
                self._spare.append(lent)
            else:
                lib.ut_buffer_free(lent)

        return give_back
