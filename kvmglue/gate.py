"""The gate of a VM: its vCPUs stand outside of KVM_RUN, their last port access completed."""

from __future__ import annotations

import errno
from typing import Any, Protocol

from kvmglue._sys import check, lib
from uffdtrack import PAUSE_TIMEOUT, check_call
from uffdtrack.errors import CycleError, PauseTimeoutError

STOP_NS = int(PAUSE_TIMEOUT * 1e9)


class Machine(Protocol):
    """The VM, as its gate sees it."""

    @property
    def native(self) -> Any: ...
    def check(self) -> None: ...


class KvmGate:
    """Stops and resumes the vCPUs of a VM.

    Attributes:
        tracker: the core's active tracker of KVM's dirty log, or None.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.tracker: Any = None

    def pause(self, timeout: float) -> None:
        self.close()
        self.wait_parked(timeout)

    def close(self) -> None:
        """Begin a pause, without waiting for it."""
        lib.kg_gate_close(self._machine.native)

    def wait_parked(self, timeout: float) -> None:
        """Raises: PauseTimeoutError: a vCPU did not stop within so many seconds; all run on."""
        self.check(lib.kg_wait_parked(self._machine.native, int(timeout * 1e9)), "stop the vCPUs")

    @property
    def is_closed(self) -> bool:
        return bool(lib.kg_gate_closed(self._machine.native))

    def open(self) -> None:
        """Let every vCPU run, whether a ring is full or not."""
        lib.kg_gate_open(self._machine.native)

    def resume(self) -> None:
        if lib.kg_is_full(self._machine.native):
            raise CycleError("a dirty ring is full: exchange() or prepare() comes before resume()")
        self.open()

    def wait(self, seconds: float) -> bool:
        if self.tracker is None:
            check_call(-errno.ESHUTDOWN, "wait")
        result = lib.kg_wait_full(self.tracker, int(seconds * 1e9), STOP_NS)
        if self.check(result, "stop the vCPUs"):
            return True
        self._machine.check()
        return False

    def check(self, result: int, doing: str) -> int:
        """Turn a negative errno of the core into an exception; if a vCPU did not stop in time, all run on."""
        if result == -errno.ETIMEDOUT:
            native = self._machine.native
            late = tuple(vcpu for vcpu in range(native.nvcpus) if not lib.kg_stands(native, vcpu))
            self.open()
            raise PauseTimeoutError(f"vCPUs {list(late)} did not stop in time; all run on", late)
        return check(check_call(result, doing), doing)
