"""A tracker for memory of a process that is attached to: a guest's RAM in its hypervisor, a heap, an arena.

The vCPUs are threads of that process, and ptrace stops them.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from uffdtrack import joining
from uffdtrack._sys import check, check_own, ffi, lib
from uffdtrack.arguments import bytes_like, whole
from uffdtrack.errors import (
    CycleError,
    InvalidInputError,
    PauseTimeoutError,
    PermissionDeniedError,
    StopTimeoutError,
    StorageError,
    TargetGoneError,
    VcpuGoneError,
)
from uffdtrack.gate import PAUSE_TIMEOUT
from uffdtrack.lists import UffdTracker
from uffdtrack.ram import Memslot, checked_slots, index_in
from uffdtrack.rights import how_to_be_allowed
from uffdtrack.space import PAGE
from uffdtrack.tracee import Tracee, task_directory
from uffdtrack.traits import Traits

SETTLE = 5.0
"""Seconds for a thread that did not stop in time, at the end."""
PARTS = 8
"""ring: wake-ups on the way to the threshold, of one vCPU that does all the writing."""


class ProcessRam:
    """A range of another process's memory, taken as RAM.

    Args:
        pid: the process.
        address: where the range begins in it; a multiple of 4096. All of it has to be mapped, writable, and
            to stay so: what the process gives back (madvise, munmap) is in no list.
        size: in bytes, as one memslot from frame 0; or
        slots: memslots, which stand one behind the other in the range.

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
        self.size = sum(slot.pages for slot in self.slots) * PAGE
        if address % PAGE or address <= 0 or (size is not None and size != self.size):
            raise InvalidInputError(f"{size} bytes at {address:#x} are not whole pages")
        self.pid = pid
        self.address = address
        self._watchers: weakref.WeakSet[Any] = weakref.WeakSet()
        try:
            self._memory = os.open(task_directory(pid) / "mem", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise PermissionDeniedError(
                f"not allowed to look into process {pid}. {how_to_be_allowed(pid)}"
            ) from error
        except OSError as error:
            raise TargetGoneError(f"there is no process {pid}") from error

    def index(self, gfn: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Rows of `pages()` for guest frame numbers.

        Raises:
            InvalidInputError: a frame in no memslot.
        """
        return index_in(self.slots, gfn)

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
        if offset < 0 or offset + len(view) > self.size:
            raise InvalidInputError(f"bytes {offset} to {offset + len(view)} are not in the RAM")
        try:
            source = ffi.from_buffer(view) if len(view) else ffi.NULL
            written = lib.ut_remote_write(self.pid, self.address + offset, source, len(view))
            check(written, "write to the memory", self.pid)
        finally:
            first = offset // PAGE
            for watcher in list(self._watchers):
                if len(view):
                    watcher.host_wrote(first, (offset + len(view) - 1) // PAGE - first + 1)

    def watch(self, watcher: Any) -> None:
        self._watchers.add(watcher)

    def unwatch(self, watcher: Any) -> None:
        self._watchers.discard(watcher)

    def close(self) -> None:
        """Idempotent."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def __enter__(self) -> ProcessRam:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class ProcessTracker(UffdTracker):
    """A tracker of `ProcessRam`. `open_tracker()` makes it.

    `pause()`, `wait_full()` and `resume()` stop and resume every thread of the process, vCPU or not. They
    belong to one thread of the caller's, as ptrace(2) does. If the tracker dies, kill -9 included, the
    process runs on, untracked.
    """

    ram: ProcessRam

    def __init__(
        self, ram: ProcessRam, traits: Traits, vcpus: int, max_dirty_pages: int | None, reason: str
    ) -> None:
        super().__init__(ram, traits, vcpus, max_dirty_pages, reason)  # type: ignore[arg-type]
        self._tracee: Tracee | None = None
        self._halted = False

    def _track_own(self) -> None:
        """Set the traps, in the process's own mapping."""
        if self._tracee:
            return
        ram, sync = self.ram, self._engine == lib.UT_SYNC
        uffd = lib.ut_attach_uffd(ram.pid, int(not sync))
        if sync and uffd == -errno.EPERM:
            raise PermissionDeniedError(
                f"process {ram.pid} may not have the kernel's own faults answered, which engine sync needs: "
                "sysctl vm.unprivileged_userfaultfd=1, or use another engine"
            )
        check(uffd, "make a userfaultfd in the name", ram.pid)
        features = lib.UFFD_FEATURE_WP_UNPOPULATED | lib.UFFD_FEATURE_WP_HUGETLBFS_SHMEM
        if sync:
            features |= lib.UFFD_FEATURE_PAGEFAULT_FLAG_WP | lib.UFFD_FEATURE_THREAD_ID
        else:
            features |= lib.UFFD_FEATURE_WP_ASYNC
        try:
            check(lib.ut_uffd_api(uffd, features, ffi.NULL), "set the userfaultfd up", ram.pid)
            armed = lib.ut_arm(uffd, ram.address, ram.size)
            if armed in (-errno.EINVAL, -errno.ENOMEM, -errno.ENOENT):
                raise InvalidInputError(
                    f"not all of {ram.address:#x} to {ram.address + ram.size:#x} is memory of process "
                    f"{ram.pid} that can be tracked: private anonymous, or shared memory"
                )
            check(armed, "write-protect the memory", ram.pid)
            pagemap = os.open(task_directory(ram.pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(uffd)
            raise
        added = lib.ut_tracker_add(self._c, 0, uffd, pagemap, ram.address, lib.UT_HOST)
        check_own(added, "track the memory")
        self._tracee = Tracee(ram.pid)

    def deactivate(self) -> None:
        """Every page is writable, and every thread runs. Idempotent."""
        super().deactivate()
        if self._tracee:
            self._tracee.settle(SETTLE)  # a thread that did not stop in time can only be let go when it does
            self._tracee.close()
            self._tracee = None
        self._halted = False

    def bind(self, vcpu: int, tid: int) -> None:
        """Make a thread of the process a vCPU.

        Raises:
            InvalidInputError: no such vCPU, bound already, or no such thread.
        """
        self._claim(vcpu)
        if not self._lives(tid):
            raise InvalidInputError(f"process {self.ram.pid} has no thread {tid}")
        wake = max(self._threshold // PARTS, 1) * 16 if self._threshold else lib.UT_NEVER
        perf = joining.open_perf(self._engine, tid, False, wake)
        lib.ut_vcpu_bind(self._shared, vcpu, self.ram.pid, tid, -1)
        if perf:
            try:
                added = lib.ut_tracker_events(self._c, vcpu, 0, *perf, -1)
                check_own(added, "map a perf ring")
            except BaseException:
                lib.ut_tracker_drop(self._c, vcpu, 0)
                raise
        self._own.add(vcpu)

    def _unbind(self, vcpu: int) -> None:
        self._own.discard(vcpu)
        lib.ut_tracker_drop(self._c, vcpu, 0)

    def vcpu(self, vcpu: int) -> Any:
        raise InvalidInputError("the vCPUs are threads of another process: bind() them")

    def _lives(self, tid: int) -> bool:
        return os.path.exists(f"/proc/{self.ram.pid}/task/{tid}")

    def _tid(self, vcpu: int) -> int:
        return int(lib.ut_vcpu_tid(self._shared, vcpu))

    # -- the gate ---------------------------------------------------------------------------------

    def pause(self, timeout: float = PAUSE_TIMEOUT) -> None:
        """Stop every thread of the process.

        Raises:
            PauseTimeoutError: one did not stop within `timeout` seconds; all run on.
            VcpuGoneError: a vCPU has ended.
            TargetGoneError: the process has ended.
        """
        self._active()
        if self._halted:
            return
        assert self._tracee
        try:
            self._tracee.stop(int(timeout * 1e9), patience=0)
        except StopTimeoutError as error:
            late = self._tracee.late
            lib.ut_gate_open(self._shared)
            vcpus = tuple(v for v in sorted(self._own) if self._tid(v) in late)
            raise PauseTimeoutError(
                f"threads {late} of process {self.ram.pid} did not stop in time, vCPUs {list(vcpus)}; "
                "all run on",
                vcpus,
            ) from error
        lib.ut_set_halted(self._c, 1)
        self._halted = True
        gone = tuple(v for v in sorted(self._own) if not self._lives(self._tid(v)))
        if gone:
            for v in gone:
                self._unbind(v)
            self._run()
            raise VcpuGoneError(
                f"vCPUs {list(gone)} have ended; what they wrote is in the next cycle, and others run on",
                gone,
            )

    def resume(self) -> None:
        """Let every thread run. Idempotent.

        Raises:
            CycleError: the lists are full: `exchange()` or `prepare()` comes first.
        """
        super().resume()
        self._run()

    def _run(self) -> None:
        lib.ut_gate_open(self._shared)
        lib.ut_set_halted(self._c, 0)
        self._halted = False
        assert self._tracee
        self._tracee.resume()

    def wait_full(self, timeout: float | None = None) -> bool:
        """Wait until the threshold is reached; every thread of the process stands then, until `resume()`.

        Args:
            timeout: in seconds; None: for ever.

        Returns:
            Whether it was reached.

        Raises:
            CycleError: there is no threshold.
            PauseTimeoutError, VcpuGoneError, TargetGoneError: see `pause()`.
        """
        native = self._active()
        if not self._threshold:
            raise CycleError("no threshold was given to open_tracker()")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = 0.1 if deadline is None else max(0.0, min(deadline - time.monotonic(), 0.1))
            if self._wait(native, int(left * 1e9)):
                self.pause()
                if self._engine != lib.UT_RING:
                    return True
                if self.pending() >= self._threshold:
                    lib.ut_gate_full(self._shared)
                    return True
                self._run()
            elif self._own and not any(self._lives(self._tid(v)) for v in self._own):
                self.pause()  # says who has ended
                self._run()
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _wait(self, native: Any, timeout_ns: int) -> bool:
        if self._engine == lib.UT_RING:
            return bool(lib.ut_ring_wait(native, timeout_ns))
        result = lib.ut_wait_full(native, timeout_ns, 0)
        if result < 0:
            self._check_pause(result)
        return bool(result)
