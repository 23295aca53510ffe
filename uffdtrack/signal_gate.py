"""The gate of vCPUs that a signal stops."""

from __future__ import annotations

import errno

from uffdtrack._sys import check_own, lib
from uffdtrack.cycles import check_call
from uffdtrack.errors import CycleError, HandlerGoneError, PauseTimeoutError, VcpuGoneError
from uffdtrack.gate import PAUSE_TIMEOUT
from uffdtrack.vcpus import Vcpus


def check_core(result: int, doing: str) -> int:
    """Turn a negative errno of the tracker's core into an exception."""
    if result >= 0:
        return result
    if check_call(result, doing) == -errno.EPIPE:
        raise HandlerGoneError(
            f"cannot {doing}: a fault handler has ended, and what was written since is not known; "
            "deactivate(), and take a full copy"
        )
    return check_own(result, doing)


def resume_core(vcpus: Vcpus) -> None:
    """Open the core's gate. Raises: CycleError: the lists are full."""
    result = lib.ut_resume(vcpus.native)
    if result == -errno.EBUSY:
        raise CycleError("the lists are full: exchange() or prepare() comes before resume()")
    check_core(result, "resume")


def raise_gone(gone: tuple[int, ...]) -> None:
    raise VcpuGoneError(
        f"vCPUs {list(gone)} have ended; what they wrote is in the next cycle, and others run on", gone
    )


class SignalGate:
    """Stops the vCPUs by a signal (SIGRTMAX-2) wherever they are in user code."""

    def __init__(self, vcpus: Vcpus) -> None:
        self._vcpus = vcpus

    def pause(self, timeout: float) -> None:
        while not self._check(lib.ut_pause(self._vcpus.native, int(timeout * 1e9))):
            pass

    def resume(self) -> None:
        resume_core(self._vcpus)

    def wait(self, seconds: float) -> bool:
        return self.wait_closed(seconds, PAUSE_TIMEOUT)

    def wait_closed(self, seconds: float, stop: float) -> bool:
        """Whether the gate closes by itself in so many seconds; vCPUs have `stop` seconds to come to it."""
        result = lib.ut_wait_full(self._vcpus.native, int(seconds * 1e9), int(stop * 1e9))
        if result != 1:
            self._check(result)
        return bool(result == 1)

    def _check(self, result: int) -> bool:
        """False: a vCPU has ended, and left before we could report it; the others run."""
        check_call(result, "stop the vCPUs")
        if result == -errno.ETIMEDOUT:
            self._raise_late()
        if result < 0:
            lib.ut_let_run(self._vcpus.native)
        if result == -errno.ESRCH:
            for vcpu in self._vcpus.in_state(lib.UT_VCPU_GONE):
                self._vcpus.bury(vcpu)
        gone = self._vcpus.take_gone()
        if gone:
            lib.ut_let_run(self._vcpus.native)
            raise_gone(gone)
        if result == -errno.ESRCH:
            return False
        check_core(result, "stop the vCPUs")
        return True

    def _raise_late(self) -> None:
        native, shared = self._vcpus.native, self._vcpus.shared
        bound = self._vcpus.in_state(lib.UT_VCPU_BOUND)
        late = tuple(vcpu for vcpu in bound if not lib.ut_vcpu_stands(shared, vcpu))
        lib.ut_let_run(native)
        raise PauseTimeoutError(f"vCPUs {list(late)} did not stop in time; all run on", late)
