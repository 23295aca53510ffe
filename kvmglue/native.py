"""A guest without KVM: a native thread that does the same orders on the same RAM."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvmglue._sys import check, ffi, lib
from uffdtrack import GuestRam


class NativeGuest:
    """One vCPU in user space, for engines that KVM's writes escape (`ring`, `inline`).

    Args:
        ram: what it writes.

    Attributes:
        tid: of its thread, for `UffdTracker.bind()`.
    """

    def __init__(self, ram: GuestRam) -> None:
        out = ffi.new("kg_native **")
        check(lib.kg_native_open(ffi.cast("uint8_t *", ram.address), out), "start a thread")
        self._c: Any = out[0]
        self.tid = int(lib.kg_native_tid(self._c))
        self._rows = np.empty(0, np.uint64)

    def post(self, rows: npt.NDArray[np.uint64], value: int, storm: bool = False) -> None:
        """Write rows, once or until `stop()`; see `kvmglue.Order`."""
        self._rows = np.ascontiguousarray(rows, np.uint64)
        at = ffi.cast("uint64_t *", self._rows.ctypes.data)
        kind = lib.KG_STORM if storm else lib.KG_WRITE
        lib.kg_native_post(self._c, kind, at, len(self._rows), value & 0xFF)

    def wait(self, timeout: float) -> bool:
        return bool(lib.kg_native_wait(self._c, int(timeout * 1e9)))

    def stop(self) -> None:
        self._c.mailbox.stop = 1

    @property
    def written(self) -> int:
        """Writes of its order so far."""
        return int(self._c.mailbox.written)

    @property
    def took_us(self) -> float:
        """Of its last order."""
        return int(self._c.took_ns) / 1e3

    def close(self) -> None:
        """Idempotent."""
        if self._c is not None:
            lib.kg_native_close(self._c)
            self._c = None
