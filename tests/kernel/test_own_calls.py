"""What a thread has set up about its calls, signals and registers is as it was after calls in its name."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import checkpoint.rollback.order
import checkpoint.rollback.work
from checkpoint.chain import Chain
from checkpoint.errors import RollbackRefusedError
from tests.conftest import missing
from tests.helpers import Build, Run, Spawn, wait_for
from tests.kernel.own_calls import MEMBERS, Target
from tests.kernel.rollee import take
from uffdtrack import AddressSpace, Pending, Tracee, status_field
from uffdtrack.errors import StopTimeoutError, TargetError

AS_ROOT = {"filters", "strict", "hidden", "trap"}
"""Suspending a filter needs CAP_SYS_ADMIN, tracing what is not dumpable CAP_SYS_PTRACE."""

KERNEL_STATE = {
    "breakpoint": "the kernel's counter goes on",
    "vfork": "the child that it waits for may have ended since",
}
"""What a rollback does not bring back, so that the program must notice it."""
QUICK = ("rseq", "registration", "faults")


def patiently(work: Callable[[], object]) -> None:
    """A thread in vfork(2) cannot be stopped; the next time it may be elsewhere."""
    for _ in range(20):
        try:
            work()
            return
        except StopTimeoutError:
            continue
    pytest.fail("it could never be stopped")


def look(pid: int) -> None:
    """One session: attach, take epochs, let go."""
    space = AddressSpace.attach(pid)
    try:
        with Tracee(pid) as tracee:
            patiently(lambda: space.harvest(tracee, everything=True))
            for _ in range(6):
                patiently(lambda: space.window(tracee, Pending()))
                time.sleep(0.003)
    finally:
        space.close()


@pytest.mark.parametrize(
    "member", [pytest.param(m, marks=pytest.mark.slow) if m == "vfork" else m for m in MEMBERS]
)
def test_sessions_are_not_noticed(kernel: None, spawn: Spawn, build: Build, member: str) -> None:
    if member in AS_ROOT and os.geteuid():
        missing("root")
    target = Target(spawn, build, member)
    files = sorted(os.listdir(f"/proc/{target.pid}/fd"))
    for _ in range(5):
        patiently(lambda: look(target.pid))
    target.works_on()
    assert sorted(os.listdir(f"/proc/{target.pid}/fd")) == files
    assert len(os.listdir(f"/proc/{target.pid}/task")) == 2
    assert status_field(target.pid, "TracerPid") == "0"


@pytest.mark.slow
@pytest.mark.parametrize("member", [m for m in MEMBERS if m not in KERNEL_STATE and m not in QUICK])
def test_rollbacks_are_not_noticed(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run, member: str
) -> None:
    if member in AS_ROOT and os.geteuid():
        missing("root")
    back_and_on(Target(spawn, build, member), tmp_path / "c", uffdtrack)


@pytest.mark.parametrize("member", QUICK)
def test_quick_rollbacks_are_not_noticed(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run, member: str
) -> None:
    """Those of the above that are for every day."""
    back_and_on(Target(spawn, build, member), tmp_path / "c", uffdtrack)


def back_and_on(target: Target, chain: Path, uffdtrack: Run) -> None:
    take(uffdtrack, target.pid, chain)
    for _ in range(2):
        target.works_on()
        uffdtrack("rollback", target.pid, chain)
    target.works_on()


def test_rollback_of_who_is_stopped(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    """By job control, and it still is, at whichever of its signals."""
    target = Target(spawn, build, "faults")

    def stopped(work: Callable[[], object]) -> None:
        os.kill(target.pid, signal.SIGSTOP)
        assert os.waitid(os.P_PID, target.pid, os.WSTOPPED | os.WNOWAIT)
        work()
        wait_for(lambda: status_field(target.pid, "State").startswith("T"), "it is stopped still")
        os.kill(target.pid, signal.SIGCONT)

    stopped(lambda: take(uffdtrack, target.pid, tmp_path / "c"))
    for _ in range(3):
        target.works_on()
        stopped(lambda: uffdtrack("rollback", target.pid, tmp_path / "c"))
    target.works_on()


def test_call_that_does_not_end_is_interrupted(kernel: None, spawn: Spawn, build: Build) -> None:
    target = Target(spawn, build, "registers")
    with Tracee(target.pid) as tracee:
        tracee.stop()
        with tracee.injector() as injector, pytest.raises(TargetError, match="cannot wait"):
            injector.call(34, [], "wait for a signal")  # pause(2)
    target.works_on()


def test_processor_numbers_stay_those_of_now(kernel: None, spawn: Spawn, build: Build) -> None:
    """Memory of an epoch has those of then, and newer kernels write them only when they change."""
    target = Target(spawn, build, "rseq")
    offset = ctypes.c_ssize_t.in_dll(ctypes.CDLL(None), "__rseq_offset").value
    with Tracee(target.pid) as tracee, open(f"/proc/{target.pid}/mem", "r+b", buffering=0) as memory:
        tracee.stop()
        first = next(t for t in tracee.threads if t.tid == target.pid)
        area = struct.unpack("27Q", first.regs)[21] + offset  # fs_base
        tracee.keep_processor_numbers()
        memory.seek(area)
        before = memory.read(28)
        memory.seek(area)
        memory.write(b"\x55" * 28)
        tracee.put_processor_numbers()
        memory.seek(area)
        after = memory.read(28)
        assert after == before[:8] + b"\x55" * 12 + before[20:]
        memory.seek(area)
        memory.write(before)
    target.works_on()


def test_shadow_stack_is_refused(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Few processors have one, so the kernel's word for it is put into its mouth."""
    target = Target(spawn, build, "registers")
    take(uffdtrack, target.pid, tmp_path / "c")
    monkeypatch.setattr(checkpoint.rollback.threads, "status_field", lambda pid, name: "shstk wrss")
    with pytest.raises(RollbackRefusedError, match="shadow stack"):
        checkpoint.rollback.order.rollback(target.pid, Chain(tmp_path / "c").view(0))
    target.works_on()


def test_registration_of_a_rollback_that_is_taken_back(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    target = Target(spawn, build, "registration")
    for number in range(40):
        take(uffdtrack, target.pid, tmp_path / str(number))
        view = Chain(tmp_path / str(number)).view(0)
        if view.epoch.threads[0].rseq == (0, 0, 0):
            break
    else:
        pytest.fail("it is registered all the time")

    def fails(memory: object, plan: object) -> None:
        raise TargetError("no memory to write")

    monkeypatch.setattr(checkpoint.rollback.work.Memory, "write", fails)
    for _ in range(8):
        target.works_on()
        with pytest.raises(RollbackRefusedError, match="no memory to write; the process is as it was"):
            checkpoint.rollback.order.rollback(target.pid, view)
    target.works_on()
