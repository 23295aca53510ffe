"""Guest RAM: memory that vCPUs write and a tracker tracks."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import numpy as np
import numpy.typing as npt

from uffdtrack.arguments import bytes_like, whole
from uffdtrack.errors import InvalidInputError, StorageError
from uffdtrack.memslots import Memslot, Ram, checked_slots
from uffdtrack.runs import PAGE

# MAP_NORESERVE has a name in Python from 3.12 on.
NORESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str | int) -> int:
    """8GiB, 64M, or a number of bytes.

    Raises:
        InvalidInputError: not a size.
    """
    if not isinstance(text, str):
        return whole("a size", text, -(1 << 63))
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([bkmgt]?)(i?b)?", text.strip().lower())
    if not found:
        raise InvalidInputError(f"{text!r} is not a size such as 64MiB or 8GiB")
    return int(float(found[1]) * _UNITS[found[2]])


class GuestRam(Ram):
    """Memory of a guest, as one array.

    Args:
        size: of all the RAM, as one memslot from frame 0; a multiple of 4096 bytes.
        slots: memslots instead, with ascending frame numbers, for a guest whose RAM has holes. In `array`
            they are back to back.
        shared: shared memory, which vCPU processes and others map by `name`. Otherwise
            private anonymous memory, for guests whose vCPUs are threads of this process.
        huge: back private memory by huge pages; the kernel splits one when a page of it is first written.

    Attributes:
        name: of the shared memory; "" for private memory.
        array: shape (bytes,), uint8.
        slots: the memslots.

    Raises:
        InvalidInputError: sizes or slots that cannot be right.
        StorageError: no memory.
    """

    def __init__(
        self,
        size: str | int | None = None,
        *,
        slots: Sequence[Memslot] | None = None,
        shared: bool = True,
        huge: bool = False,
    ) -> None:
        if (size is None) == (slots is None):
            raise InvalidInputError("give the size of the RAM, or its memslots")
        if slots is None:
            length = parse_size(size or 0)
            if length <= 0 or length % PAGE:
                raise InvalidInputError(f"{size} is not a multiple of {PAGE} bytes above 0")
            slots = [Memslot(0, length // PAGE)]
        if shared and huge:
            raise InvalidInputError("huge pages are for private memory (shared=False)")
        self.slots = checked_slots(slots)
        length = sum(slot.pages for slot in self.slots) * PAGE
        self._shm: shared_memory.SharedMemory | None = None
        self._map: mmap.mmap | None = None
        try:
            if shared:
                self._shm = shared_memory.SharedMemory(create=True, size=length)
            else:
                self._map = mmap.mmap(-1, length, NORESERVE)
                self._map.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        except OSError as error:
            raise StorageError(f"cannot get {length} bytes of guest RAM: {error.strerror}") from error
        self._owner = True
        self._open(length)

    def _open(self, length: int) -> None:
        memory: Any = self._shm.buf if self._shm else self._map
        self.array: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8, length)
        self.name = self._shm.name if self._shm else ""
        super().__init__()

    @classmethod
    def attach(cls, name: str, slots: Sequence[Memslot] | None = None) -> GuestRam:
        """Map RAM that another process has made; `close()` leaves it there.

        Raises:
            InvalidInputError: there is none of that name.
        """
        ram = cls.__new__(cls)
        register = resource_tracker.register
        # Python before 3.13 would delete the memory when a process that merely attached to it ends.
        resource_tracker.register = lambda *_: None
        try:
            ram._shm = shared_memory.SharedMemory(name)
        except (FileNotFoundError, ValueError) as error:
            raise InvalidInputError(f"there is no guest RAM of the name {name!r}") from error
        finally:
            resource_tracker.register = register
        ram._map = None
        ram._owner = False
        ram.slots = checked_slots(slots or [Memslot(0, ram._shm.size // PAGE)])
        ram._open(sum(slot.pages for slot in ram.slots) * PAGE)
        return ram

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.array)

    @property
    def address(self) -> int:
        """Its address in this process."""
        return int(self.array.ctypes.data)

    @property
    def shared(self) -> bool:
        return self._shm is not None

    def page(self, gfn: int) -> npt.NDArray[np.uint8]:
        """The 4096 bytes of one guest frame."""
        first = int(self.index(np.array([gfn], np.uint64))[0]) * PAGE
        return self.array[first : first + PAGE]

    def pages(self) -> npt.NDArray[np.uint8]:
        """All pages: shape (pages, 4096); row i is that of `index()` i."""
        return self.array.reshape(-1, PAGE)

    def read_into(self, gfn: npt.NDArray[np.uint64], into: npt.NDArray[np.uint8]) -> None:
        np.take(self.pages(), self.index(gfn), axis=0, out=into[: len(gfn)])

    def host_write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write as the host does (a device, a clock page): the pages go to the trackers' global lists.

        A write to `array` from outside of the vCPUs may be missed (Traits.sees_outside); this one is not.

        Raises:
            InvalidInputError: outside of the RAM.
        """
        view = bytes_like("data", data)
        whole("offset", offset)
        self._check(offset, len(view))
        self.array[offset : offset + len(view)] = np.frombuffer(view, np.uint8)
        self._wrote(offset, len(view))

    def discard(self, offset: int, size: int) -> None:
        """Give memory back to the host, as a balloon does: its pages read as zero, and count as written.

        madvise(2) alone takes the traps of private memory away and tells no tracker. Shared memory is only
        zeroed, and stays allocated.

        Raises:
            InvalidInputError: outside of the RAM, or not whole pages.
        """
        self._check(offset, size)
        if offset % PAGE or size % PAGE:
            raise InvalidInputError(f"bytes {offset} to {offset + size} are not whole pages")
        if size and self._map:
            self._map.madvise(mmap.MADV_DONTNEED, offset, size)
        elif size:
            self.array[offset : offset + size] = 0
        self._wrote(offset, size)

    def close(self) -> None:
        """Unmap; shared memory that was made here is deleted. Idempotent."""
        del self.array
        self.array = np.empty(0, np.uint8)
        shm, self._shm = self._shm, None
        memory, self._map = self._map, None
        try:
            if shm:
                shm.close()
            if memory:
                memory.close()
        except BufferError:
            # An array of the caller's still shows it, and it is unmapped with that one.
            if shm:
                shm._buf = shm._mmap = None  # type: ignore[attr-defined]
                shm.close()
        if shm and self._owner:
            shm.unlink()
