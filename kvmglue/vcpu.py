"""A vCPU: its state, why it ended, its mailbox."""

from __future__ import annotations

import os
import struct
from array import array
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from kvmglue._sys import check, ffi, lib
from kvmglue.kvm import Kvm
from kvmglue.memory import SystemMemory
from uffdtrack.errors import InvalidInputError, UnsupportedError

_TIME = (0x10, 0x6E0)
"""MSRs that change by themselves: the time-stamp counter, and its deadline."""


@dataclass(frozen=True, slots=True)
class VcpuExit:
    """Why a vCPU has ended.

    Attributes:
        reason: "exit" (the guest asked for it, with `code`), "closed", or what went wrong.
        code: see `reason`.
    """

    reason: str
    code: int

    @property
    def failed(self) -> bool:
        return self.reason not in ("exit", "closed")


@dataclass(frozen=True, slots=True)
class VcpuState:
    """All of a vCPU's state, as KVM gives it.

    Attributes:
        parts: sregs, regs, xcrs, xsave, debugregs, events, mp_state: structs of linux/kvm.h.
        msr_data: index and value of each MSR, 8 bytes each.
    """

    parts: tuple[bytes, ...]
    msr_data: bytes

    @property
    def msrs(self) -> list[tuple[int, int]]:
        """Index and value."""
        return list(_MSR.iter_unpack(self.msr_data))

    def same(self, other: VcpuState) -> bool:
        """Whether nothing differs but the time, which goes on by itself."""
        return self.parts == other.parts and self._still() == other._still()

    def _still(self) -> list[tuple[int, int]]:
        return [(index, value) for index, value in self.msrs if index not in _TIME]

    @property
    def xsave(self) -> bytes:
        """The extended state, in the layout of NT_X86_XSTATE."""
        return self.parts[int(lib.KG_STATE_XSAVE)]

    @property
    def user_registers(self) -> bytes:
        """struct user_regs_struct (sys/user.h), with orig_rax as rax."""
        out = ffi.new("uint64_t[]", lib.KG_USER_REGISTERS)
        sregs, regs = (ffi.from_buffer(self.parts[part]) for part in (lib.KG_STATE_SREGS, lib.KG_STATE_REGS))
        lib.kg_user_registers(sregs, regs, out)
        return bytes(ffi.buffer(out))

    @property
    def registers(self) -> dict[str, int]:
        """rax, rbx, ..., rip, rflags."""
        values = _REGISTERS.unpack(self.parts[lib.KG_STATE_REGS])
        return dict(zip(REGISTERS, values, strict=True))


REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rip", "rflags",
)  # fmt: skip
_REGISTERS = struct.Struct("<18Q")
_MSR = struct.Struct("<QQ")


class Machine(Protocol):
    """The VM, as its vCPUs see it."""

    kvm: Kvm
    system: SystemMemory
    msr_indexes: array[int]

    @property
    def native(self) -> Any: ...


class Vcpu:
    """One vCPU of a VM; it lives in a native thread, which runs it outside of Python."""

    def __init__(self, vm: Machine, number: int) -> None:
        self._vm = vm
        self.number = number

    @property
    def tid(self) -> int:
        """The id of its thread."""
        return int(lib.kg_vcpu_tid(self._vm.native, self.number))

    @property
    def mailbox(self) -> Any:
        """`kg_mailbox` of _native/guest.h, in the guest's memory."""
        return self._vm.system.mailbox(self.number)

    @property
    def exit(self) -> VcpuExit | None:
        """Why it has ended; None if it has not."""
        if lib.kg_vcpu_state(self._vm.native, self.number) != lib.KG_ENDED:
            return None
        native = self._vm.native.vcpu[self.number]
        reason, code, detail = int(native.reason), int(native.code), int(native.detail)
        if reason == lib.KG_END_EXIT:
            return VcpuExit("exit", code)
        if reason == lib.KG_END_TOLD:
            return VcpuExit("closed", 0)
        words = {
            lib.KG_END_ERRNO: f"KVM_RUN failed: {os.strerror(code)}",
            lib.KVM_EXIT_SHUTDOWN: "it shut down (a fault without a handler)",
            lib.KVM_EXIT_INTERNAL_ERROR: f"an internal error of KVM, number {code}",
            lib.KVM_EXIT_FAIL_ENTRY: f"the processor refused to enter it, reason {detail:#x}",
            lib.KVM_EXIT_MMIO: f"it {'wrote' if code else 'read'} where no memory is, at {detail:#x}",
            lib.KVM_EXIT_HLT: "it halted, and no interrupt can wake it",
        }
        return VcpuExit(words.get(reason, f"an exit that nobody handles, reason {reason}"), code)

    @property
    def took_us(self) -> float:
        """How long its last order took."""
        return int(self._vm.native.vcpu[self.number].took_ns) / 1e3

    @property
    def counts(self) -> dict[str, int]:
        """Entries into KVM_RUN (`runs`), and how many `kicks`, `ports` or `fulls` (a full ring) ended."""
        c = lib.kg_vcpu_counts(self._vm.native, self.number)
        return {name: int(getattr(c, name)) for name in ("runs", "kicks", "ports", "fulls")}

    def state(self) -> VcpuState:
        """All of its state. The vCPU has to stand: `Vm.pause()`."""
        self._must_stand()
        native, xsave = self._vm.native, self._vm.kvm.capabilities.xsave_bytes
        while True:
            msrs = self._vm.msr_indexes
            wanted, n = ffi.from_buffer("uint32_t[]", msrs), len(msrs)
            got = lib.kg_get_state(native, self.number, xsave, wanted, n, self._room)
            if check(got, "read a vCPU's state") == n:
                break
            self._vm.msr_indexes = msrs[:got] + msrs[got + 1 :]  # it is listed for others than this guest
        data, at, parts = bytes(ffi.buffer(self._room)), 0, []
        for size in self._sizes:
            parts.append(data[at : at + size])
            at += size
        return VcpuState(tuple(parts), data[at : at + n * _MSR.size])

    @cached_property
    def _sizes(self) -> list[int]:
        """Of the parts of its state, in bytes."""
        xsave = self._vm.kvm.capabilities.xsave_bytes
        return [int(lib.kg_state_bytes(part, xsave)) for part in range(lib.KG_STATES)]

    @cached_property
    def _room(self) -> Any:
        return ffi.new("uint8_t[]", sum(self._sizes) + len(self._vm.msr_indexes) * _MSR.size)

    def set_state(self, state: VcpuState) -> None:
        """Put all of its state back. The vCPU has to stand.

        Raises:
            UnsupportedError: this host's KVM refuses a part of it.
        """
        self._must_stand()
        for part, data in enumerate(state.parts):
            size = lib.kg_state_bytes(part, self._vm.kvm.capabilities.xsave_bytes)
            if part == lib.KG_STATE_XSAVE:
                data = data[:size].ljust(size, b"\0")
            elif len(data) != size:
                raise UnsupportedError(f"part {part} of the vCPU state has {len(data)} bytes, not {size}")
            result = lib.kg_set_state(self._vm.native, self.number, part, ffi.from_buffer(data))
            if result < 0:
                raise UnsupportedError(
                    f"KVM does not take part {part} of vCPU {self.number}'s state: {os.strerror(-result)}"
                )
        now = dict(self.state().msrs)
        for index, value in state.msrs:
            if now.get(index) == value:
                continue
            if index >> 32:
                raise UnsupportedError(f"there is no MSR {index:#x}")
            if lib.kg_set_msr(self._vm.native, self.number, index, value) != 1 and index not in _TIME:
                raise UnsupportedError(f"KVM does not take {value:#x} for MSR {index:#x}")

    def _must_stand(self) -> None:
        if not lib.kg_stands(self._vm.native, self.number):
            raise InvalidInputError(f"vCPU {self.number} runs: pause() the VM first")
