"""A virtual machine of this process as a target: its images, its way back, its start in a fresh process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from checkpoint.chain import View
from checkpoint.contents import to_runs
from checkpoint.files import malformed
from checkpoint.image import EpochFile, expand, note, thread_notes
from kvmglue import KvmTracker, Vcpu, VcpuState, Vm
from uffdtrack import (
    PAGE,
    GuestRam,
    Memslot,
    Pending,
    Region,
    Runs,
    ThreadState,
    UffdTracker,
    Window,
)
from uffdtrack.errors import (
    CycleError,
    ImageError,
    InvalidInputError,
    PauseTimeoutError,
    RollbackRefusedError,
    StopTimeoutError,
)

NOTE_VCPU = 0x75660003
"""All of one vCPU's state, as JSON: `vcpu`, `parts` (hex), `msrs`."""
_NONE: Runs = np.empty((0, 2), np.uint64)
_USER_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
"""struct user_regs_struct (sys/user.h); orig_rax is rax."""


class VmTarget:
    """A VM that is being checkpointed. Addresses of its images are guest-physical.

    Args:
        vm: it may run.
        tracker: active, on its RAM.
        guest: what it runs, for people.
    """

    def __init__(self, vm: Vm, tracker: KvmTracker | UffdTracker, guest: str) -> None:
        self.pid = os.getpid()
        self.vm = vm
        self.tracker = tracker
        self.guest = guest
        self.engine = tracker.traits.name
        self.max_dirty = tracker.max_dirty_pages
        self._started = time.time_ns()
        self._buffer = np.empty(0, np.uint8)
        state = vm.system_state
        self._system_at = vm.system_address // PAGE
        self._system = np.zeros((len(state) // PAGE, PAGE), np.uint8)
        self._whole_system = True
        self._left = _Left()
        self._states: list[VcpuState] = []
        slots = [(slot.gfn, slot.pages) for slot in vm.ram.slots]
        self.regions = [_region(gfn, pages, f"[ram{i}]") for i, (gfn, pages) in enumerate(slots)] + [
            _region(self._system_at, len(self._system), "[system]")
        ]

    # -- Target -----------------------------------------------------------------------------------

    def harvest(self, everything: bool) -> tuple[Runs, Runs]:
        """A guest that stands at a threshold goes on."""
        pages = self._left.gfns()
        with stopping():
            pages = np.union1d(pages, exchange_running(self.tracker))
        if not everything:
            return to_runs(pages), _NONE
        self._whole_system = True
        return np.array([(r.start, r.end) for r in self.regions[:-1]], np.uint64), _NONE

    def copy(self, runs: Runs) -> tuple[Runs, Runs, memoryview]:
        pages = expand(runs)
        return self._parted(pages, self._copy(pages))

    def window(self, pending: Pending) -> Window:
        started = time.perf_counter()
        with stopping():
            try:
                self._stop()
                stopped = time.perf_counter()
                self._left.add(self.tracker.exchange().gfn)
                self._states = [vcpu.state() for vcpu in self.vm.vcpus]
                self._left.add(self._system_changed())
                touched = self._left.gfns()
                harvested = time.perf_counter()
                pages = np.union1d(touched, expand(pending.pages))
                copied = self._copy(pages)
                done = time.perf_counter()
            finally:
                # What was harvested is not lost if a part of this has failed.
                pending.add(to_runs(self._left.gfns()), _NONE)
                self._left.clear()
                self.vm.resume()
        data, zero, contents = self._parted(pages, copied)
        return Window(
            regions=self.regions,
            threads=[_thread(i, state) for i, state in enumerate(self._states)],
            data=data,
            zero=zero,
            reset=_NONE,
            contents=contents,
            unreadable=0,
            compared=1,
            scanned=self.tracker.traits.cost == "O(size)",
            touched=int(np.searchsorted(touched, self._system_at)),  # of the RAM
            stop_us=(stopped - started) * 1e6,
            harvest_us=(harvested - stopped) * 1e6,
            copy_us=(done - harvested) * 1e6,
            rearm_us=0.0,  # in the harvest: exchange()
            pause_us=(done - started) * 1e6,
        )

    def describe(self, window: Window) -> tuple[bytes, dict[str, Any]]:
        facts = {
            "pid": self.pid, "ppid": os.getppid(), "pgrp": os.getpgrp(), "sid": os.getsid(0),
            "uid": os.getuid(), "gid": os.getgid(), "comm": "vm", "cmdline": f"vm {self.guest}", "exe": "",
            "start_time": self._started, "boot_id": "",
        }  # fmt: skip
        notes = thread_notes(window.threads, facts)
        for i, state in enumerate(self._states):
            content = {"vcpu": i, "parts": [part.hex() for part in state.parts], "msrs": state.msrs}
            notes += note(b"uffdtrack", NOTE_VCPU, json.dumps(content).encode())
        return notes, {
            "process": facts,
            "descriptors": [],
            "files": {},
            "heap_end": 0,
            "vm": {
                "guest": self.guest,
                "vcpus": len(self.vm.vcpus),
                "slots": [[slot.gfn, slot.pages] for slot in self.vm.ram.slots],
                "system_bytes": self._system.size,
            },
        }

    def reattach(self) -> None:
        raise AssertionError("a VM keeps its memory")

    def ended(self, seconds: float = 0) -> bool:
        return any(vcpu.exit for vcpu in self.vm.vcpus)

    def settle(self, timeout: float) -> bool:
        """Nothing of it is held when a window fails."""
        return True

    # -- parts of a window ------------------------------------------------------------------------

    def _stop(self) -> None:
        """Have every vCPU at the VM's gate, where its state is whole.

        At a threshold of `sync` they stand at the tracker's gate, anywhere in their own code: what is full is
        harvested first then, and left for the next window.
        """
        self.vm.gate.close()
        self._left.add(leave_own_gate(self.vm, self.tracker))
        self.vm.pause()

    def _system_changed(self) -> npt.NDArray[np.uint64]:
        now = self.vm.system_state.reshape(-1, PAGE)
        changed = np.flatnonzero((now != self._system).any(axis=1) | self._whole_system)
        self._whole_system = False
        self._system[changed] = now[changed]
        return (changed + self._system_at).astype(np.uint64)

    def _copy(self, pages: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        if self._buffer.size < len(pages) * PAGE:
            self._buffer = np.empty(len(pages) * PAGE, np.uint8)
        out = self._buffer[: len(pages) * PAGE].reshape(-1, PAGE)
        ram = int(np.searchsorted(pages, self._system_at))
        np.take(self.vm.ram.pages(), self.vm.ram.index(pages[:ram]), axis=0, out=out[:ram], mode="clip")
        out[ram:] = self._system[(pages[ram:] - np.uint64(self._system_at)).astype(np.int64)]
        return out

    def _parted(
        self, pages: npt.NDArray[np.uint64], copied: npt.NDArray[np.uint8]
    ) -> tuple[Runs, Runs, memoryview]:
        full = copied.view(np.uint64).any(axis=1)
        contents = copied if full.all() else copied[full]
        return to_runs(pages[full]), to_runs(pages[~full]), contents.reshape(-1).data

    # -- the way back -----------------------------------------------------------------------------

    def rollback(self, view: View) -> int:
        """Put memory and vCPUs back to an epoch of this VM; returns how many pages were written.

        Everything is read before the first byte changes. The pages count as written by the host. A VM that
        was paused stays so.

        Raises:
            RollbackRefusedError: an epoch of another machine.
            ImageError: the chain does not hold it whole.
        """
        states = vcpu_states(view.epoch)
        if slots_of(view.epoch) != list(self.vm.ram.slots) or len(states) != len(self.vm.vcpus):
            raise RollbackRefusedError(f"{view.epoch.path} is of a VM with other memory or other vCPUs")
        if any(vcpu.exit for vcpu in self.vm.vcpus):
            raise RollbackRefusedError("a vCPU of the VM has ended: resume the epoch in a fresh process")
        ram, system = np.zeros_like(self.vm.ram.pages()), np.zeros_like(self.vm.system_state)
        read_memory(view, self.vm, ram, system)
        was_paused = self.vm.is_paused
        self._stop()
        try:
            pages = self.vm.ram.pages()
            rows = np.flatnonzero((pages != ram).any(axis=1))
            for first, end in to_runs(rows.astype(np.uint64)).tolist():
                self.vm.ram.host_write(first, ram.reshape(-1)[first:end].data)
            self.vm.system_state[:] = system
            for vcpu, state in zip(self.vm.vcpus, states, strict=True):
                vcpu.set_state(state)
        finally:
            if not was_paused:
                self.vm.resume()
        return len(rows)


class _Left:
    """Pages that were harvested and are in no window yet."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.uint64]] = []

    def add(self, gfn: npt.NDArray[np.uint64]) -> None:
        self._parts.append(gfn.copy())

    def gfns(self) -> npt.NDArray[np.uint64]:
        """Sorted, each once."""
        return np.unique(np.concatenate([np.empty(0, np.uint64), *self._parts]))

    def clear(self) -> None:
        self._parts = []


@contextmanager
def stopping() -> Iterator[None]:
    """A vCPU that does not stop is, to a session, what a thread is that does not."""
    try:
        yield
    except PauseTimeoutError as error:
        raise StopTimeoutError(str(error)) from error


def resume_full(tracker: KvmTracker | UffdTracker) -> npt.NDArray[np.uint64]:
    """Open a tracker's gate; what is full has to be harvested before, and is returned."""
    pages = np.empty(0, np.uint64)
    while True:
        try:
            tracker.resume()
            return pages
        except CycleError:
            pages = np.union1d(pages, tracker.exchange().gfn)


def leave_own_gate(vm: Vm, tracker: KvmTracker | UffdTracker) -> npt.NDArray[np.uint64]:
    """Where a tracker has a gate beside the VM's, have vCPUs leave it; see `resume_full()`."""
    return np.empty(0, np.uint64) if tracker.gate is vm.gate else resume_full(tracker)


def exchange_running(tracker: KvmTracker | UffdTracker) -> npt.NDArray[np.uint64]:
    """Harvest and rearm while the guest runs; where it stands at its threshold, it goes on."""
    pages = tracker.exchange().gfn.copy()
    return np.union1d(pages, resume_full(tracker)) if tracker.max_dirty_pages else pages


def _region(gfn: int, pages: int, name: str) -> Region:
    return Region(gfn * PAGE, (gfn + pages) * PAGE, "rwxp", 0, "0:0", 0, name)


def _thread(number: int, state: VcpuState) -> ThreadState:
    """A vCPU as a thread of a core: debuggers show its registers."""
    values = {**dict.fromkeys(_USER_REGISTERS, 0), **state.registers, **state.segments}
    regs = b"".join(values[name].to_bytes(8, "little") for name in _USER_REGISTERS)
    return ThreadState(number + 1, regs, state.xsave, 0, False)


# -- from an image --------------------------------------------------------------------------------


def vm_facts(epoch: EpochFile) -> dict[str, Any]:
    """What the image says of its VM.

    Raises:
        InvalidInputError: it is no VM's.
        ImageError: it is not what was written.
    """
    facts = epoch.meta.get("vm")
    if facts is None:
        raise InvalidInputError(f"{epoch.path} is a checkpoint of a process, not of a VM")
    if not isinstance(facts, dict):
        raise ImageError(f"{epoch.path} is damaged: what it says of its VM")
    return facts


def slots_of(epoch: EpochFile) -> list[Memslot]:
    with malformed(epoch.path):
        return [Memslot(int(gfn), int(pages)) for gfn, pages in vm_facts(epoch)["slots"]]


def vcpu_states(epoch: EpochFile) -> list[VcpuState]:
    """In the order of the vCPUs.

    Raises:
        ImageError: it does not hold all of them.
    """
    found: dict[int, VcpuState] = {}
    with malformed(epoch.path):
        for name, kind, data in epoch.notes:
            if (name, kind) == (b"uffdtrack", NOTE_VCPU):
                content = json.loads(data)
                parts = tuple(bytes.fromhex(part) for part in content["parts"])
                msrs = tuple((int(index), int(value)) for index, value in content["msrs"])
                found[int(content["vcpu"])] = VcpuState(parts, msrs)
        count = int(vm_facts(epoch)["vcpus"])
    if sorted(found) != list(range(count)):
        raise ImageError(f"{epoch.path} holds vCPUs {sorted(found)} of {count}")
    return [found[i] for i in range(count)]


def read_memory(view: View, vm: Vm, ram: npt.NDArray[np.uint8], system: npt.NDArray[np.uint8]) -> None:
    """Fill RAM, shape (rows, 4096), zeroed, and system memory, shape (bytes,), with those of an epoch.

    Raises:
        ImageError: of a VM that is laid out in another way.
    """
    if vm_facts(view.epoch)["system_bytes"] != system.size:
        raise ImageError(f"{view.epoch.path} was made by another version: its system memory is another")
    at = vm.system_address // PAGE
    split = int(np.searchsorted(view.pages, at))
    for part in _parts(view.pages[:split]):
        ram[vm.ram.index(part)] = view.read(part)
    system[:] = 0
    for part in _parts(view.pages[split:]):
        system.reshape(-1, PAGE)[(part - np.uint64(at)).astype(np.int64)] = view.read(part)


def _parts(pages: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.uint64]]:
    for i in range(0, len(pages), 8192):
        yield pages[i : i + 8192]


def check_same_lists(vm: Vm, vcpu: Vcpu, what: str) -> None:
    """Raises: ImageError: its system memory points to a log that this VM does not have."""
    if vcpu.mailbox.log != vm.system.log_at(vcpu.number):
        raise ImageError(f"{what} is of a VM with other lists of orders (list_rows)")


def load_vm(view: View, make: Callable[[GuestRam, int], Vm]) -> tuple[GuestRam, Vm]:
    """A fresh VM in the state of an epoch, paused.

    Args:
        make: makes the VM, of a RAM and a number of vCPUs; with the same `list_rows` as the one before.

    Raises:
        ImageError: not an epoch of a VM, or not whole.
        UnsupportedError: this host's KVM does not take the state.
    """
    states = vcpu_states(view.epoch)
    ram = GuestRam(slots=slots_of(view.epoch), shared=False)
    try:
        vm = make(ram, len(states))
        try:
            read_memory(view, vm, ram.pages(), vm.system_state)
            for vcpu, state in zip(vm.vcpus, states, strict=True):
                check_same_lists(vm, vcpu, str(view.epoch.path))
                vcpu.set_state(state)
        except BaseException:
            vm.close()
            raise
    except BaseException:
        ram.close()
        raise
    return ram, vm
