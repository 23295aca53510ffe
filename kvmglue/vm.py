"""A virtual machine: RAM, vCPUs, a gate at which they stand."""

from __future__ import annotations

import os
import time
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmglue._sys import check, ffi, lib
from kvmglue.gate import KvmGate
from kvmglue.kvm import Kvm, check_ring
from kvmglue.memory import SystemMemory
from kvmglue.vcpu import Vcpu
from uffdtrack import PAUSE_TIMEOUT, GuestRam, Pausable
from uffdtrack.closing import Closing
from uffdtrack.errors import CycleError, GuestError, InvalidInputError


class Vm(Closing, Pausable):
    """A minimal machine: RAM, 1 to 16 vCPUs, a serial port, a network device; no interrupts.

    A context manager. It is made paused, each vCPU at the start of the guest program (_native/guest.c), which
    waits for orders (`kvmglue.guests`). Closing it closes its trackers; the RAM is closed last.

    Args:
        ram: guest memory; its memslots become KVM's.
        vcpus: how many.
        ring_entries: entries of each vCPU's dirty ring, a power of 2; 0: the bitmap instead. KVM accepts this
            only before the first vCPU.
        list_rows: rows that one order can list; with it each vCPU keeps a log of the rows it writes.

    Attributes:
        ram, ring_entries: as given.
        vcpus: shape (vcpus,).
        system: the guest's other memory.
        gate: where its vCPUs stand.
        trackers: all that were opened on it.

    Raises:
        UnsupportedError, PermissionDeniedError: see `Kvm`.
        InvalidInputError: KVM refuses an argument; the message says what it accepts.
    """

    def __init__(self, ram: GuestRam, vcpus: int = 1, *, ring_entries: int = 0, list_rows: int = 0) -> None:
        self.ram = ram
        self.ring_entries = ring_entries
        self._native: Any = None
        self.gate = KvmGate(self)
        self.trackers: weakref.WeakSet[Any] = weakref.WeakSet()
        self.vcpus: list[Vcpu] = []
        self._events = 0
        self.kvm = Kvm()
        _vms.add(self)
        try:
            self._check(vcpus)
            self.msr_indexes = self.kvm.msrs()
            self.system = SystemMemory(ram.slots, vcpus, list_rows)
            self._open(vcpus)
        except BaseException:
            self.close()
            raise

    def _check(self, vcpus: int) -> None:
        most = self.kvm.capabilities
        if not 1 <= vcpus <= most.vcpus:
            raise InvalidInputError(f"{vcpus} vCPUs: there can be 1 to {most.vcpus}")
        if len(self.ram.slots) > most.memslots:
            raise InvalidInputError(f"{len(self.ram.slots)} memslots: there can be {most.memslots}")
        last = self.ram.slots[-1]
        if last.gfn + last.pages > int(lib.KG_SYSTEM_AT) >> 12:
            raise InvalidInputError("memslots go up to 256 GiB")
        if self.ring_entries:
            check_ring(self.ring_entries, most)

    def _open(self, vcpus: int) -> None:
        slots = ffi.new("ut_slot[]", len(self.ram.slots))
        row = 0
        for native, slot in zip(slots, self.ram.slots, strict=True):
            native.gfn, native.row, native.npages = slot.gfn, row, slot.pages
            row += slot.pages
        fd = check(lib.kg_create_vm(self.kvm.fd), "make a VM")
        ram = ffi.cast("uint8_t *", self.ram.address)
        system = ffi.cast("uint8_t *", self.system.array.ctypes.data)
        out = ffi.new("kg_vm **")
        size = len(self.system.array)
        opened = lib.kg_vm_open(fd, ram, slots, len(slots), system, size, out)
        if opened < 0:
            os.close(fd)
        check(opened, "give the VM its memory")
        self._native = out[0]
        if self.ring_entries:
            enabled = lib.kg_enable_ring(self.native, self.ring_entries * 16)
            check(enabled, f"have dirty rings of {self.ring_entries} entries")
        for number in range(vcpus):
            at = self.system
            made = lib.kg_vcpu_open(
                self.native, self.kvm.fd, at.mailbox_at(number), at.stack_at(number), at.tables_at
            )
            check(made, f"make vCPU {number}")
            self.vcpus.append(Vcpu(self, number))
        self.gate.wait_parked(PAUSE_TIMEOUT)

    def close(self) -> None:
        """Close its trackers, and end the vCPUs. Idempotent."""
        for tracker in list(self.trackers):
            tracker.close()
        native, self._native = self._native, None
        if native is not None:
            lib.kg_vm_close(native)
        self.kvm.close()

    @property
    def is_open(self) -> bool:
        return self._native is not None

    @property
    def native(self) -> Any:
        """The core's VM.

        Raises:
            CycleError: it is closed.
        """
        if self._native is None:
            raise CycleError("the VM is closed")
        return self._native

    @property
    def system_address(self) -> int:
        """The guest-physical address of `system_state`."""
        return int(lib.KG_SYSTEM_AT)

    @property
    def system_state(self) -> npt.NDArray[np.uint8]:
        """The part of the system memory that belongs to the guest's state: whole pages."""
        return self.system.array[: self.system.state_bytes]

    # -- the gate ---------------------------------------------------------------------------------

    def pause(self, timeout: float = PAUSE_TIMEOUT) -> None:
        """Get every vCPU out of KVM_RUN, its last port access completed. Idempotent.

        Raises:
            PauseTimeoutError: a vCPU did not stop within `timeout` seconds; all run on.
        """
        self.gate.pause(timeout)

    @property
    def is_paused(self) -> bool:
        """Whether the gate is closed."""
        return self.gate.is_closed

    def resume(self) -> None:
        """Let every vCPU run. Idempotent."""
        self.gate.open()

    # -- the guest --------------------------------------------------------------------------------

    def ring_bell(self) -> None:
        """Tell vCPUs that sleep that a mailbox was changed: they look again."""
        lib.kg_ring_bell(self.native)

    def wait_event(self, timeout: float) -> None:
        """Wait for something new since the last call: an order done, a line printed, a vCPU ended."""
        left = max(int(timeout * 1e9), 0)
        self._events = int(lib.kg_wait_event(self.native, self._events, left))

    def serial(self) -> bytes:
        """What the guest has printed since the last call. It waits when that is 1 MiB, until this is called.

        A VM with an `Outbox` has its output there.
        """
        out = b""
        room = 65536
        data = ffi.new("char[]", room)
        while n := lib.kg_take_serial(self.native, data, room):
            out += bytes(ffi.buffer(data, n))
        lib.kg_hold(self.native, -len(out), 0)
        return out

    @property
    def has_output(self) -> bool:
        """Whether the guest has sent something that nobody has taken yet."""
        return bool(lib.kg_has_output(self.native))

    def connect(self, fd: int) -> None:
        """Let the guest get the packets that can be read from a descriptor, which does not block; once.

        The VM has a copy of it.
        """
        check(lib.kg_connect(self.native, fd), "connect the network device")

    def disconnect(self) -> None:
        """Undo `connect`: another process may need what it has led to. The vCPUs have to stand."""
        check(lib.kg_disconnect(self.native), "disconnect the network device")

    def check(self) -> None:
        """Raises: GuestError: a vCPU has ended as no guest intends."""
        for vcpu in self.vcpus:
            ended = vcpu.exit
            if ended and ended.failed:
                raise GuestError(f"vCPU {vcpu.number} has ended: {ended.reason}", vcpu.number)

    def wait_ended(self, timeout: float) -> bool:
        """Wait until a vCPU has ended.

        Raises:
            GuestError: see `check()`.
        """
        deadline = time.monotonic() + timeout
        while True:
            has_ended = any(v.exit for v in self.vcpus)
            self.check()  # behind it: one may fail meanwhile
            if has_ended:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.wait_event(min(left, 0.1))


_vms: weakref.WeakSet[Vm] = weakref.WeakSet()


def _in_child() -> None:
    """A forked child has copies of the fds, which are of no use to it, and none of the threads."""
    for vm in _vms:
        vm._native = None
        vm.kvm.close()


os.register_at_fork(after_in_child=_in_child)
