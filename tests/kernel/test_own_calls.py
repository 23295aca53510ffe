"""What a thread has set up about its calls, signals and registers is as it was after calls in its name."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import checkpoint.rollback
from checkpoint.chain import Chain
from tests.conftest import missing
from tests.helpers import wait_for
from tests.kernel.test_rollback import take
from uffdtrack import AddressSpace, Pending, Tracee, status_field
from uffdtrack.errors import PermissionDeniedError, RollbackRefusedError, StopTimeoutError, TargetError

Spawn = Callable[..., subprocess.Popen[bytes]]
Run = Callable[..., subprocess.CompletedProcess[str]]

MEMBERS = {
    "rseq": "inside of a critical section of rseq(2): it is aborted, and never goes on",
    "registration": "registers with rseq(2) itself, and takes that back: twice in a row is an error",
    "dispatch": "syscall user dispatch: our calls do not become SIGSYS, the target's do",
    "filter": "a seccomp filter of one thread that kills for userfaultfd and restart_syscall",
    "filters": "the same filter for all threads",
    "strict": "seccomp's strict mode, which kills for all but read, write and exit",
    "limit": "no file descriptor is free, and the limit is a hard one",
    "soft-limit": "no file descriptor is free, and the limit may be raised",
    "no-vdso": "the vdso is unmapped: the system call instruction is another one",
    "signals": "handlers of SIGTRAP and SIGSEGV, ignored SIGSYS, blocked SIGSEGV",
    "alternate": "an alternate stack of the least size, used all the time",
    "handler": "inside of a signal handler",
    "suspend": "sigsuspend: another mask for the time of the call",
    "step": "the trap flag: the thread steps itself",
    "faults": "signals of its own instructions: a stop is in front of the instruction, or behind its signal",
    "trap": "the same of a seccomp filter that answers with SIGSYS",
    "breakpoint": "a breakpoint of the processor's on the thread",
    "compat": "calls by int 0x80, which restart in another way",
    "code32": "32-bit code in a 64-bit process",
    "registers": "all kinds of registers, the red zone, the direction flag",
    "hidden": "PR_SET_DUMPABLE 0, PR_SET_NO_NEW_PRIVS",
    "tsc": "PR_SET_TSC: the clock of the vdso is a fault",
    "mdwe": "PR_SET_MDWE: no memory becomes executable",
    "vfork": "in vfork(2), where no stop is possible until the child is done",
}
AS_ROOT = {"filters", "strict", "hidden", "trap"}
"""Suspending a filter needs CAP_SYS_ADMIN, tracing what is not dumpable CAP_SYS_PTRACE."""

KERNEL_STATE = {
    "breakpoint": "the kernel's counter goes on",
    "vfork": "the child that it waits for may have ended since",
}
"""What a rollback does not bring back, so that the program must notice it."""
QUICK = ("rseq", "registration", "faults")


class Target:
    """tests/programs/own_calls.c."""

    def __init__(self, spawn: Spawn, build: Callable[[str], Path], member: str, *more: str) -> None:
        self.process = spawn(build("own_calls"), member, *more)
        self.pid = self.process.pid
        assert self.process.stdin and self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout
        line = self.output.readline()
        if line == b"unsupported\n":
            missing(MEMBERS[member])
        assert line == b"ready\n"

    def rounds(self) -> int:
        self.input.write(b"\n")
        self.input.flush()
        line = self.output.readline().decode()
        assert line.strip().isdigit(), f"{line!r}, status {self.process.poll()}"
        return int(line)

    def works_on(self) -> None:
        """It goes through more rounds; none has noticed anything."""
        first = self.rounds()
        deadline = time.monotonic() + 30
        while self.rounds() < first + 3:
            assert time.monotonic() < deadline, "it stands still"
            time.sleep(0.001)


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
def test_sessions_are_not_noticed(
    kernel: None, spawn: Spawn, build: Callable[[str], Path], member: str
) -> None:
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
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run, member: str
) -> None:
    if member in AS_ROOT and os.geteuid():
        missing("root")
    back_and_on(Target(spawn, build, member), tmp_path / "c", uffdtrack)


@pytest.mark.parametrize("member", QUICK)
def test_quick_rollbacks_are_not_noticed(
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run, member: str
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
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run
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


def test_call_that_does_not_end_is_interrupted(
    kernel: None, spawn: Spawn, build: Callable[[str], Path]
) -> None:
    target = Target(spawn, build, "registers")
    with Tracee(target.pid) as tracee:
        tracee.stop()
        with tracee.injector() as injector, pytest.raises(TargetError, match="cannot wait"):
            injector.call(34, [], "wait for a signal")  # pause(2)
    target.works_on()


def test_processor_numbers_stay_those_of_now(
    kernel: None, spawn: Spawn, build: Callable[[str], Path]
) -> None:
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
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Few processors have one, so the kernel's word for it is put into its mouth."""
    target = Target(spawn, build, "registers")
    take(uffdtrack, target.pid, tmp_path / "c")
    monkeypatch.setattr(checkpoint.rollback, "status_field", lambda pid, name: "shstk wrss")
    with pytest.raises(RollbackRefusedError, match="shadow stack"):
        checkpoint.rollback.rollback(target.pid, Chain(tmp_path / "c").view(0))
    target.works_on()


def test_registration_of_a_rollback_that_is_taken_back(
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run,
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

    monkeypatch.setattr(checkpoint.rollback.Memory, "write", fails)
    for _ in range(8):
        target.works_on()
        with pytest.raises(RollbackRefusedError, match="no memory to write; the process is as it was"):
            checkpoint.rollback.rollback(target.pid, view)
    target.works_on()


UNPRIVILEGED = ("setpriv", "--bounding-set=-all,+sys_ptrace,+dac_override", "--inh-caps=-all")
ATTACH = """
import sys
from uffdtrack import AddressSpace
AddressSpace.attach(int(sys.argv[1])).close()
"""
# A filter that allows all; then a program under it, and who attaches to that.
UNDER_ONE_FILTER = """
import ctypes, struct, subprocess, sys
from uffdtrack import AddressSpace
libc = ctypes.CDLL(None)
rule = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7fff0000))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(rule)))
assert not libc.prctl(38, 1, 0, 0, 0) and not libc.prctl(22, 2, program)
target = subprocess.Popen([sys.argv[1], "registers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
try:
    assert target.stdout.readline() == b"ready\\n"
    AddressSpace.attach(target.pid).close()
    assert target.poll() is None
finally:
    target.kill()
"""


def unprivileged(tool: Callable[[str], str], script: str, *argv: object) -> subprocess.CompletedProcess[str]:
    """Run Python as a user who may trace others, and may not suspend their filters."""
    tool("setpriv")
    command = [*UNPRIVILEGED, sys.executable, "-c", script, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("files", [(), ("files",)])
def test_thread_without_a_filter_is_taken(
    root: None, spawn: Spawn, build: Callable[[str], Path], tool: Callable[[str], str], files: tuple[str, ...]
) -> None:
    """Even where its descriptors are not the first thread's."""
    target = Target(spawn, build, "filter", *files)
    done = unprivileged(tool, ATTACH, target.pid)
    assert not done.returncode, done.stderr
    target.works_on()


def test_filter_that_is_not_known_is_refused(
    root: None, spawn: Spawn, build: Callable[[str], Path], tool: Callable[[str], str]
) -> None:
    """It kills for userfaultfd(2), which we cannot know, nor prevent."""
    target = Target(spawn, build, "filters")
    done = unprivileged(tool, ATTACH, target.pid)
    assert PermissionDeniedError.__name__ in done.stderr and "seccomp" in done.stderr
    target.works_on()


def test_filter_that_is_our_own_is_known(
    root: None, build: Callable[[str], Path], tool: Callable[[str], str]
) -> None:
    """As in a container: who attaches is under the same filters, and tries them first."""
    done = unprivileged(tool, UNDER_ONE_FILTER, build("own_calls"))
    assert not done.returncode, done.stderr
