"""The threads of another process: stopped together, read, changed, released."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from uffdtrack._sys import STOP_TIMEOUT_NS, check, ffi, lib
from uffdtrack.closing import Closing
from uffdtrack.errors import MaxStopError, StopTimeoutError, TargetError
from uffdtrack.whereabouts import describe_threads, frozen_cgroup

CALL_SECONDS = 10.0
"""How many seconds a stop waits for the end of a call that it must not break off."""


class Rseq(NamedTuple):
    """What a thread has registered with rseq(2); `area` 0: nothing."""

    area: int
    size: int
    signature: int


@dataclass(frozen=True, slots=True)
class ThreadState:
    """The user-visible state of one stopped thread.

    Attributes:
        tid: thread id.
        regs: 216 bytes, `struct user_regs_struct` of x86-64 (ptrace(2), PTRACE_GETREGS).
        xstate: the XSAVE area (NT_X86_XSTATE); its first 512 bytes are the FXSAVE area.
        sigmask: the blocked signals, bit n-1 for signal n.
        worker: a thread of the kernel's own (io_uring), without user registers.
        rseq: None: not known.
    """

    tid: int
    regs: bytes
    xstate: bytes
    sigmask: int
    worker: bool
    rseq: Rseq | None = None


class Tracee(Closing):
    """Traces a process for as long as its threads are stopped, and no longer.

    All calls of one Tracee belong to the thread that made it: ptrace(2) ties a tracee to a thread.
    Use it as a context manager; leaving the block resumes all threads.

    Attributes:
        has_run: whether a thread has run since the last `stop`, in a call in its name.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.has_run = False
        out = ffi.new("ut_tracee **")
        check(lib.ut_tracee_open(pid, out), "open", pid)
        self._c = out[0]

    @property
    def native(self) -> object:
        return self._c

    def stop(self, timeout_ns: int = STOP_TIMEOUT_NS, patience: float = CALL_SECONDS) -> None:
        """Stop every thread.

        Args:
            timeout_ns: how long threads that have stopped stand for one that has not.
            patience: seconds to wait, while all run, for the end of a call that a stop would harm.

        Raises:
            TargetGoneError: the process has ended.
            StopTimeoutError: a thread did not stop; all run on.
            PermissionDeniedError: not allowed to trace it.
        """
        end = time.monotonic() + patience
        self.has_run = False
        result = lib.ut_tracee_stop(self._c, timeout_ns)
        while result == lib.UT_BUSY and time.monotonic() < end:
            result = lib.ut_tracee_stop(self._c, timeout_ns)
        if result == -errno.ETIMEDOUT:
            raise self.late_error("stop the threads")
        check(result, "stop the threads", self.pid)

    def late_error(self, doing: str) -> StopTimeoutError:
        """The error to raise if a thread did not stop."""
        return late_error(self.pid, self.late, doing)

    @property
    def late_reason(self) -> str:
        """Why the last stop did not succeed, as a clause."""
        return late_reason(self.pid, self.late)

    def check_time(self) -> None:
        """Call this now and then while the threads stand.

        Raises:
            MaxStopError: half of the time for which they may stand is over (`start_watchdog`). Undo your
                changes now: the other half is left for that, and then the watchdog ends this process.
        """
        if lib.ut_tracee_overdue(self._c):
            bound = lib.ut_guard_max_ns() / 1e9
            raise MaxStopError(
                f"it would take longer than half of the time that process {self.pid} may stand "
                f"(--max-stop {bound:g}s): give it more"
            )

    def resume(self) -> None:
        """Release every thread. Idempotent."""
        lib.ut_tracee_resume(self._c)

    def settle(self, seconds: float) -> bool:
        """Wait for threads that did not stop in time, and let them go; False: some still have not stopped."""
        return not lib.ut_tracee_settle(self._c, int(seconds * 1e9))

    @property
    def busy(self) -> str:
        """After UT_BUSY: a clause that says which thread is in a call that a stop leaves alone."""
        nr = int(self._c.calls.busy_nr)
        what = {
            lib.UT_ESCORT_SUPERVISED: "system call that its seccomp supervisor answers",
            lib.UT_ESCORT_FAULT: "page fault that a file system in user space answers",
        }.get(nr, f"system call (number {nr}) that begins anew when it is interrupted")
        return f"thread {self._c.calls.busy_tid} is in a {what}"

    @property
    def late(self) -> list[int]:
        """Threads that did not stop in time at the last stop."""
        threads = (self._c.threads[i] for i in range(self._c.n))
        return [int(t.tid) for t in threads if t.state == lib.UT_THREAD_ASKED]

    @property
    def threads(self) -> list[ThreadState]:
        """The state of each thread at the last stop."""
        return states_of(self._c.threads, self._c.n, self._c.xstate, self._c.xstate_stride)

    @property
    def xstate_stride(self) -> int:
        """How many bytes apart the core keeps XSAVE areas."""
        return int(self._c.xstate_stride)

    @property
    def exit_status(self) -> int | None:
        """The wait status of the target, if we have seen its end (a child of ours), else None."""
        return None if self._c.exit_status < 0 else int(self._c.exit_status)

    @contextmanager
    def injector(self, tid: int | None = None) -> Iterator[Injector]:
        """Make system calls in the name of a stopped thread, or of any; its state is restored after."""
        self.has_run = True
        if tid is None:
            at = check(lib.ut_inject_begin_any(self._c), "prepare a call in the name", self.pid)
        else:
            at = self._begin(tid)
        try:
            yield Injector(self, at)
        finally:
            check(lib.ut_inject_end(self._c, at), "put back the registers", self.pid)

    def end_thread(self, tid: int) -> None:
        """Make a stopped thread end itself, by exit(2) in its name."""
        self.has_run = True
        at = self._begin(tid)
        check(lib.ut_inject_exit(self._c, at), f"end thread {tid}", self.pid)

    def _begin(self, tid: int) -> int:
        at = check(lib.ut_tracee_index(self._c, tid), f"find thread {tid}", self.pid)
        check(lib.ut_inject_begin(self._c, at), "prepare a call in the name", self.pid)
        return at

    def set_state(self, state: ThreadState) -> None:
        """Give a stopped thread the registers and the signal mask of `state`."""
        at = check(lib.ut_tracee_index(self._c, state.tid), f"find thread {state.tid}", self.pid)
        regs = ffi.from_buffer("uint64_t[]", state.regs)
        result = lib.ut_tracee_set(self._c, at, regs, state.xstate, len(state.xstate), state.sigmask)
        check(result, f"set the registers of thread {state.tid}", self.pid)

    def keep_processor_numbers(self) -> None:
        """Remember what the kernel has told the stopped threads of their processors (rseq(2))."""
        check(lib.ut_rseq_keep(self._c), "read the areas of rseq(2)", self.pid)

    def put_processor_numbers(self) -> None:
        """Write that back, into memory whose contents were replaced."""
        check(lib.ut_rseq_put(self._c), "write the areas of rseq(2)", self.pid)

    def close(self) -> None:
        if self._c is not None:
            lib.ut_tracee_close(self._c)
            self._c = None


class Injector:
    """Runs system calls in a stopped thread."""

    def __init__(self, tracee: Tracee, index: int) -> None:
        self._tracee = tracee
        self._index = index

    def call(self, number: int, arguments: Sequence[int], doing: str) -> int:
        """Run one system call and return its result.

        Raises:
            TargetError: the call failed; `doing` and the reason are in the message.
        """
        padded = [a & (1 << 64) - 1 for a in arguments] + [0] * (6 - len(arguments))
        result = ffi.new("int64_t *")
        native = self._tracee.native
        check(lib.ut_inject(native, self._index, number, padded, result), doing, self._tracee.pid)
        value = int(result[0])
        if -4096 < value < 0:
            name = errno.errorcode.get(-value, str(-value))
            raise TargetError(f"cannot {doing} in process {self._tracee.pid}: {name}")
        return value


def states_of(threads: Any, count: int, xstate: Any, stride: int) -> list[ThreadState]:
    """The states of those of the core's threads that have stopped, killed since or not."""
    states = []
    for i in range(count):
        t = threads[i]
        if not t.stood and t.state != lib.UT_THREAD_STOPPED:
            continue
        states.append(
            ThreadState(
                t.tid,
                bytes(ffi.buffer(t.regs)),
                bytes(ffi.buffer(xstate + i * stride, t.xstate_len)) if not t.worker else b"",
                t.sigmask,
                bool(t.worker),
                Rseq(t.rseq.area, t.rseq.size, t.rseq.signature),
            )
        )
    return states


def late_error(pid: int, tids: Sequence[int], doing: str) -> StopTimeoutError:
    """The error of threads that did not stop."""
    return StopTimeoutError(
        f"cannot {doing} of process {pid}: {late_reason(pid, tids)}; all its threads run on"
    )


def late_reason(pid: int, tids: Sequence[int]) -> str:
    """Why threads did not stop, as a clause."""
    frozen = frozen_cgroup(pid)
    if frozen:
        return f"the cgroup {frozen} of the process is frozen"
    return f"{describe_threads(pid, tids) or 'a thread (in exec?)'} does not stop"
