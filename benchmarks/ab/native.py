"""A guest without KVM: a native thread that writes the same rows of the same RAM."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.ab._native._core import ffi, lib
from uffdtrack import GuestRam
from uffdtrack.errors import TrackerError


class NativeGuest:
    """One vCPU in user space, for engines that KVM's writes escape (`ring`, `inline`).

    Args:
        ram: what it writes.

    Attributes:
        tid: of its thread, for `UffdTracker.bind()`.
    """

    def __init__(self, ram: GuestRam) -> None:
        out = ffi.new("ab_native **")
        opened = lib.ab_native_open(ffi.cast("uint8_t *", ram.address), out)
        if opened < 0:
            raise TrackerError(f"cannot start a thread: {os.strerror(-opened)}")
        self._c: Any = out[0]
        self.tid = int(lib.ab_native_tid(self._c))
        self._rows = np.empty(0, np.uint64)

    def post(self, rows: npt.NDArray[np.uint64], value: int, storm: bool = False) -> None:
        """Write rows, once or until `stop()`; see `kvmglue.Order`."""
        self._rows = np.ascontiguousarray(rows, np.uint64)
        at = ffi.cast("uint64_t *", self._rows.ctypes.data)
        lib.ab_native_post(self._c, at, len(self._rows), value & 0xFF, int(storm))

    def wait(self, timeout: float) -> bool:
        return bool(lib.ab_native_wait(self._c, int(timeout * 1e9)))

    def stop(self) -> None:
        lib.ab_native_stop(self._c)

    @property
    def written(self) -> int:
        """Writes of its order so far."""
        return int(lib.ab_native_written(self._c))

    @property
    def took_us(self) -> float:
        """Of its last order."""
        return int(lib.ab_native_took_ns(self._c)) / 1e3

    def close(self) -> None:
        """Idempotent."""
        if self._c is not None:
            lib.ab_native_close(self._c)
            self._c = None
