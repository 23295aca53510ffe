"""A guest without KVM: a process for each vCPU, which writes the same rows of the same RAM."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.ab._native._core import ffi, lib
from uffdtrack import PAGE, GuestRam, join
from uffdtrack.errors import TrackerError

HEAD = 64
"""Bytes of `ab_native` before its rows, and no fewer."""
START = 60.0
CONTEXT = multiprocessing.get_context("spawn")


def _control(ram: GuestRam) -> Any:
    return ffi.cast("ab_native *", ram.address)


def _vcpu(
    ram_name: str, control_name: str, number: int, tracked: bool, touch: bool, pipe: Connection
) -> None:
    with ExitStack() as stack:
        control = stack.enter_context(GuestRam.attach(control_name))
        started = time.perf_counter()
        if tracked:
            ram = stack.enter_context(join(ram_name, number)).ram
        else:
            ram = stack.enter_context(GuestRam.attach(ram_name))
        join_us = (time.perf_counter() - started) * 1e6
        if touch:
            ram.array[::PAGE].max()
        pipe.send(join_us)
        lib.ab_native_run(_control(control), ffi.cast("uint8_t *", ram.address))
        del ram


class NativeGuest:
    """One vCPU in user space, for engines that KVM's writes escape (`ring`, `inline`).

    Args:
        ram: what it writes; shared memory.
        number: of the vCPU.
        tracked: it joins the tracker that is active on the RAM.
        touch: all of the RAM is in its page tables before it begins. These are faults, too, so with a
            threshold it would stand for them.

    Attributes:
        join_us: what that took.

    Raises:
        TrackerError: its process does not start.
    """

    def __init__(self, ram: GuestRam, number: int, tracked: bool, touch: bool) -> None:
        rows = HEAD + ram.size // PAGE * 8
        self._ram = GuestRam((rows + PAGE - 1) // PAGE * PAGE)
        self._c = _control(self._ram)
        ours, theirs = CONTEXT.Pipe()
        args = (ram.name, self._ram.name, number, tracked, touch, theirs)
        self._process = CONTEXT.Process(target=_vcpu, args=args, daemon=True)
        self._process.start()
        theirs.close()
        try:
            if not ours.poll(START):
                raise EOFError
            self.join_us: float = ours.recv()
        except EOFError as error:
            self.close()
            raise TrackerError(f"the process of vCPU {number} did not start") from error

    def post(self, rows: npt.NDArray[np.uint64], value: int, storm: bool = False) -> None:
        """Write rows, once or until `stop()`; see `kvmglue.Order`."""
        order = np.ascontiguousarray(rows, np.uint64)
        at = ffi.cast("uint64_t *", order.ctypes.data)
        lib.ab_native_post(self._c, at, len(order), value & 0xFF, int(storm))

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
            lib.ab_native_quit(self._c)
            self._process.join(START)
            self._c = None
            self._ram.close()
