"""Memory of another process as a guest's RAM: that of a hypervisor's guest, a heap, an arena."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from uffdtrack._sys import check, ffi, lib
from uffdtrack.arguments import bytes_like, whole
from uffdtrack.errors import InvalidInputError, PermissionDeniedError, StorageError, TargetGoneError
from uffdtrack.memslots import Memslot, Ram, checked_slots
from uffdtrack.process import task_directory
from uffdtrack.rights import how_to_be_allowed
from uffdtrack.runs import PAGE


class ProcessRam(Ram):
    """A range of another process's memory, as RAM.

    Args:
        pid: the process.
        address: where the range begins in it; a multiple of 4096. All of it has to be mapped, writable, and
            to stay so: no list has the pages that the process gives back (madvise, munmap).
        size: in bytes, as one memslot from frame 0; or
        slots: memslots, which are back to back in the range.

    Attributes:
        pid, address, slots: as given.

    Raises:
        InvalidInputError: a range that cannot be right.
        TargetGoneError, PermissionDeniedError: as they say.
    """

    name = ""
    shared = False

    def __init__(
        self, pid: int, address: int, size: int | None = None, *, slots: Sequence[Memslot] | None = None
    ) -> None:
        whole("pid", pid, 1, 1 << 22)
        whole("address", address, 0, 1 << 56)
        if size is not None:
            whole("size", size)
        if (size is None) == (slots is None):
            raise InvalidInputError("give the size of the range, or its memslots")
        if slots is None:
            slots = [Memslot(0, (size or 0) // PAGE)]
        self.slots = checked_slots(slots)
        super().__init__()
        if address % PAGE or address <= 0 or (size is not None and size != self.size):
            raise InvalidInputError(f"{size} bytes at {address:#x} are not whole pages")
        self.pid = pid
        self.address = address
        try:
            self._memory = os.open(task_directory(pid) / "mem", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise PermissionDeniedError(
                f"not allowed to look into process {pid}. {how_to_be_allowed(pid)}"
            ) from error
        except OSError as error:
            raise TargetGoneError(f"there is no process {pid}") from error

    def read(self, first: int, n: int) -> npt.NDArray[np.uint8]:
        """A copy of `n` pages from row `first` on: shape (n, 4096).

        Raises:
            TargetGoneError: the process has ended.
            StorageError: they cannot be read.
        """
        out = bytearray(n * PAGE)
        done = 0
        while done < len(out):
            at = self.address + first * PAGE + done
            try:
                got = os.preadv(self._memory, [memoryview(out)[done:]], at)
            except OSError as error:
                raise StorageError(f"cannot read process {self.pid} at {at:#x}: {error.strerror}") from error
            if not got:
                raise TargetGoneError(f"process {self.pid} has ended, or has replaced its program")
            done += got
        return np.frombuffer(out, np.uint8).reshape(n, PAGE)

    def read_into(self, gfn: npt.NDArray[np.uint64], into: npt.NDArray[np.uint8]) -> None:
        for i, row in enumerate(self.index(gfn).tolist()):
            into[i] = self.read(row, 1)[0]

    def pages(self) -> npt.NDArray[np.uint8]:
        """A copy of all pages: shape (pages, 4096)."""
        return self.read(0, self.size // PAGE)

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """A copy of all bytes."""
        return self.pages().reshape(-1)

    def host_write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write as the host does; the pages go to the trackers' global lists.

        Raises:
            InvalidInputError: outside of the range.
            TargetGoneError, TargetError: as they say.
        """
        view = bytes_like("data", data)
        whole("offset", offset)
        self._check(offset, len(view))
        try:
            source = ffi.from_buffer(view) if len(view) else ffi.NULL
            written = lib.ut_remote_write(self.pid, self.address + offset, source, len(view))
            check(written, "write to the memory", self.pid)
        finally:
            self._wrote(offset, len(view))

    def close(self) -> None:
        """Idempotent."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
