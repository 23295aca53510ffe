"""vCPUs that the contract tests command, as native threads and as processes."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import kvmglue
from kvmglue import Vm
from tests.processes import CONTEXT
from uffdtrack import GuestRam, ProcessTracker, UffdTracker, join

WRITE, READ_FILE, DIRECT, PVM, LOAD, STORM = range(6)
ENDS = -1
"""The thread of an attached process ends."""
DEADLINE = 30.0


class Command(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("fd", ctypes.c_int),
        ("base", ctypes.c_void_p),
        ("pages", ctypes.POINTER(ctypes.c_uint64)),
        ("n", ctypes.c_uint64),
        ("value", ctypes.c_uint8),
        ("done", ctypes.c_uint64),
        ("stop", ctypes.c_int),
        ("result", ctypes.c_long),
    )


def load(path: Path) -> Any:
    """The functions of tests/programs/guest.c."""
    library = ctypes.CDLL(str(path))
    library.guest_start.restype = ctypes.c_void_p
    library.guest_tid.argtypes = [ctypes.c_void_p]
    library.guest_post.argtypes = [ctypes.c_void_p, ctypes.POINTER(Command)]
    library.guest_wait.argtypes = [ctypes.c_void_p, ctypes.c_double]
    library.guest_end.argtypes = [ctypes.c_void_p]
    library.guest_do.argtypes = [ctypes.POINTER(Command)]
    return library


def command(address: int, kind: int, pages: Iterable[int], value: int, fd: int = -1) -> Command:
    """Write `value` to each page, at the byte whose number is the page's (modulo 4096)."""
    listed = list(pages)
    array = (ctypes.c_uint64 * len(listed))(*listed)
    made = Command(kind, fd, address, ctypes.cast(array, ctypes.POINTER(ctypes.c_uint64)), len(listed), value)
    made.keep = array
    return made


class ThreadVcpu:
    """A native thread of this process."""

    def __init__(self, library: Any, tracker: UffdTracker, ram: GuestRam, number: int) -> None:
        self._library = library
        self._guest = library.guest_start()
        self._address = ram.address
        self._command: Command | None = None
        self._tid = library.guest_tid(self._guest)
        tracker.bind(number, self._tid)

    def faults(self) -> int:
        """Of this thread so far."""
        text = Path(f"/proc/self/task/{self._tid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return int(fields[7]) + int(fields[9])

    def post(self, kind: int, pages: Iterable[int], value: int = 1, fd: int = -1) -> None:
        self._command = command(self._address, kind, pages, value, fd)
        self._library.guest_post(self._guest, self._command)

    def wait(self, timeout: float = DEADLINE) -> bool:
        return bool(self._library.guest_wait(self._guest, timeout))

    @property
    def done(self) -> int:
        """Pages written so far by the last command."""
        assert self._command
        return int(self._command.done)

    def stop(self) -> None:
        assert self._command
        self._command.stop = 1

    def result(self) -> int:
        assert self._command
        return int(self._command.result)

    def end(self) -> None:
        """Idempotent."""
        if self._guest is None:
            return
        if self._command:
            self._command.stop = 1
        assert self.wait()
        guest, self._guest = self._guest, None
        self._library.guest_end(guest)


def _process(path: Path, name: str, number: int, pipe: Connection) -> None:
    library = load(path)
    with join(name, number) as vcpu:
        pipe.send("joined")
        while True:
            order = pipe.recv()
            if order is None:
                break
            kind, pages, value, file, flags = order
            fd = os.open(file, flags) if file else -1
            made = command(vcpu.ram.address, kind, pages, value, fd)
            library.guest_do(ctypes.byref(made))
            if fd >= 0:
                os.close(fd)
            pipe.send(made.result)
    pipe.send("left")


class ProcessVcpu:
    """A process that joins by the RAM's name."""

    def __init__(self, path: Path, ram: GuestRam, number: int) -> None:
        self._pipe, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_process, args=(path, ram.name, number, other), daemon=True)
        self.process.start()
        other.close()
        assert self._pipe.poll(DEADLINE)
        assert self._pipe.recv() == "joined"
        self._result = 0
        self._busy = False

    def post(self, kind: int, pages: Iterable[int], value: int = 1, fd: int = -1) -> None:
        file, flags = "", 0
        if fd >= 0:
            file = os.readlink(f"/proc/self/fd/{fd}")
            flags = os.O_RDONLY | (os.O_DIRECT if kind == DIRECT else 0)
        self._pipe.send((kind, list(pages), value, file, flags))
        self._busy = True

    def wait(self, timeout: float = DEADLINE) -> bool:
        if self._busy:
            if not self._pipe.poll(timeout):
                return False
            self._result = self._pipe.recv()
            self._busy = False
        return True

    def result(self) -> int:
        return self._result

    def end(self) -> None:
        if self.process.is_alive():
            assert self.wait()
            self._pipe.send(None)
            assert self._pipe.poll(DEADLINE)
            assert self._pipe.recv() == "left"
        self.process.join(DEADLINE)
        assert self.process.exitcode is not None
        self.process.close()
        self._pipe.close()


class KvmVcpu:
    """A vCPU of a KVM guest. READ_FILE is a device of the host's that fills pages."""

    def __init__(self, vm: Vm, number: int) -> None:
        self._vm = vm
        self._number = number

    def post(self, kind: int, pages: Iterable[int], value: int = 1, fd: int = -1) -> None:
        names = {WRITE: "write", READ_FILE: "fill", LOAD: "read", STORM: "storm"}
        if kind not in names:
            raise AssertionError("a guest makes no system calls")
        kvmglue.post(self._vm, self._number, kvmglue.Order(names[kind], rows=list(pages), value=value))

    def wait(self, timeout: float = DEADLINE) -> bool:
        return kvmglue.wait(self._vm, self._number, timeout)

    @property
    def done(self) -> int:
        """Pages written so far by the last order."""
        return kvmglue.written(self._vm, self._number)

    def stop(self) -> None:
        kvmglue.stop(self._vm, self._number)

    def result(self) -> int:
        return 0

    def end(self) -> None:
        """Idempotent."""
        if self._vm.is_open and not any(vcpu.exit for vcpu in self._vm.vcpus):
            self.stop()
            assert self.wait()


def _attached(path: Path, size: int, threads: int, pipe: Connection) -> None:
    """A process that knows nothing of tracking: private memory, and threads that write it."""
    library = load(path)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[::4096] = b"\1" * (size // 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    guests = [library.guest_start() for _ in range(threads)]
    pipe.send((address, [library.guest_tid(guest) for guest in guests]))
    running: dict[int, tuple[Command, int]] = {}
    while True:
        if pipe.poll(0.0005 if running else None):
            order = pipe.recv()
            if order is None:
                return
            vcpu, kind, pages, value, file, flags = order
            if kind == ENDS:
                library.guest_end(guests[vcpu])
                pipe.send((vcpu, 0))
            elif kind is None:
                if vcpu in running:
                    running[vcpu][0].stop = 1
            else:
                fd = os.open(file, flags) if file else -1
                running[vcpu] = command(address, kind, pages, value, fd), fd
                library.guest_post(guests[vcpu], running[vcpu][0])
        for vcpu in list(running):
            if library.guest_wait(guests[vcpu], 0.0):
                made, fd = running.pop(vcpu)
                if fd >= 0:
                    os.close(fd)
                pipe.send((vcpu, made.result))


class Target:
    """A process to attach to."""

    def __init__(self, path: Path, size: int, threads: int) -> None:
        self.pipe, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_attached, args=(path, size, threads, other), daemon=True)
        self.process.start()
        other.close()
        assert self.pipe.poll(DEADLINE)
        self.address, self.tids = self.pipe.recv()
        self.results: dict[int, int] = {}

    def end(self) -> None:
        """Idempotent."""
        self.process.kill()
        self.process.join(DEADLINE)
        assert self.process.exitcode is not None
        self.pipe.close()


class AttachedVcpu:
    """A thread of a process that was attached to."""

    def __init__(self, target: Target, tracker: ProcessTracker, number: int) -> None:
        self._target = target
        self._number = number
        self._result = 0
        self._busy = False
        tracker.bind(number, target.tids[number])

    def post(self, kind: int, pages: Iterable[int], value: int = 1, fd: int = -1) -> None:
        file, flags = "", 0
        if fd >= 0:
            file = os.readlink(f"/proc/self/fd/{fd}")
            flags = os.O_RDONLY | (os.O_DIRECT if kind == DIRECT else 0)
        self._target.pipe.send((self._number, kind, list(pages), value, file, flags))
        self._busy = True

    def wait(self, timeout: float = DEADLINE) -> bool:
        deadline = time.monotonic() + timeout
        while self._busy and self._number not in self._target.results:
            if not self._target.pipe.poll(max(deadline - time.monotonic(), 0)):
                return False
            vcpu, result = self._target.pipe.recv()
            self._target.results[vcpu] = result
        if self._busy:
            self._result = self._target.results.pop(self._number)
            self._busy = False
        return True

    def stop(self) -> None:
        self._target.pipe.send((self._number, None, [], 0, "", 0))

    def result(self) -> int:
        return self._result

    def end(self) -> None:
        """Idempotent."""
        self.stop()
        assert self.wait()
