"""A VM's state, in an image, on a link, and back into a fresh VM."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from checkpoint.elf import NOTE_NAME, note
from checkpoint.errors import ImageError
from checkpoint.facts import VmFacts
from checkpoint.files import malformed
from checkpoint.image import EpochFile
from checkpoint.view import View
from kvmglue import Output, Vcpu, VcpuState, Vm
from uffdtrack import PAGE, Extents, GuestRam, Memslot, ThreadState
from uffdtrack.errors import InvalidInputError
from uffdtrack.runs import batches

NOTE_VCPU, NOTE_VCPU_JSON = 0x75660009, 0x75660003
"""All of one vCPU's state: `_VCPU`, sizes of its parts, the parts, index and value of its MSRs.

Older versions have it as JSON: `vcpu`, `parts` (hex), `msrs`."""
_VCPU = struct.Struct("<III")
"""Its number, how many parts and MSRs there are."""

NOTE_OUTPUT = 0x75660008
"""What the guest has sent since the epoch before: `_OUTPUT`, the packets' lengths, packets, serial bytes."""
_OUTPUT = struct.Struct("<QQII")
"""Positions of serial port and network device before it; how many bytes and packets there are."""


def encode_vcpu(number: int, state: VcpuState) -> bytes:
    sizes = [len(part) for part in state.parts]
    head = _VCPU.pack(number, len(sizes), len(state.msr_data) // 16), struct.pack(f"<{len(sizes)}I", *sizes)
    return b"".join((*head, *state.parts, state.msr_data))


def decode_vcpus(stored: Iterable[bytes]) -> list[VcpuState]:
    """Decode results of `encode_vcpu`, in any order; returns them in the order of the vCPUs.

    Raises:
        ValueError, struct.error: they are something else.
    """
    found = [_decode_vcpu(data) for data in stored]
    if sorted(number for number, _ in found) != list(range(len(found))):
        raise ValueError(f"it holds vCPUs {sorted(number for number, _ in found)}")
    return [state for _, state in sorted(found, key=itemgetter(0))]


def _decode_vcpu(data: bytes) -> tuple[int, VcpuState]:
    number, count, msrs = _VCPU.unpack_from(data)
    at = _VCPU.size + 4 * count
    parts = []
    for size in struct.unpack_from(f"<{count}I", data, _VCPU.size):
        parts.append(data[at : at + size])
        at += size
    if at + 16 * msrs != len(data):
        raise ValueError("a vCPU's state is cut off")
    return number, VcpuState(tuple(parts), data[at:])


def _of_json(data: bytes) -> bytes:
    """`encode_vcpu`, of what older versions have stored."""
    one = json.loads(data)
    parts = tuple(bytes.fromhex(part) for part in one["parts"])
    msrs = b"".join(struct.pack("<QQ", index, value) for index, value in one["msrs"])
    return encode_vcpu(int(one["vcpu"]), VcpuState(parts, msrs))


def vcpu_notes(states: list[VcpuState]) -> bytes:
    """A note for each vCPU."""
    return b"".join(note(NOTE_NAME, NOTE_VCPU, encode_vcpu(i, state)) for i, state in enumerate(states))


def output_note(output: Output) -> bytes:
    sizes = np.array([len(packet) for packet in output.packets], "<u2").tobytes()
    head = _OUTPUT.pack(output.serial_at, output.packet_at, len(output.serial), len(output.packets))
    return note(NOTE_NAME, NOTE_OUTPUT, b"".join((head, sizes, *output.packets, output.serial)))


def output_of(epoch: EpochFile) -> Output | None:
    """What the guest has sent since the epoch before; None: the image does not have it.

    Raises:
        ImageError: it is damaged.
    """
    for name, kind, data in epoch.notes:
        if (name, kind) == (NOTE_NAME, NOTE_OUTPUT):
            with malformed(epoch.path):
                return _decode_output(data)
    return None


def _decode_output(data: bytes) -> Output:
    serial_at, packet_at, serial, count = _OUTPUT.unpack_from(data)
    sizes = np.frombuffer(data, "<u2", count, _OUTPUT.size).tolist()
    at = _OUTPUT.size + 2 * count
    if at + sum(sizes) + serial != len(data) or 0 in sizes:
        raise ValueError("its guest's output is cut off")
    packets = []
    for size in sizes:
        packets.append(data[at : at + size])
        at += size
    return Output(serial_at, data[at:], packet_at, packets)


def vcpu_thread(number: int, state: VcpuState) -> ThreadState:
    """A vCPU as a thread of a core: debuggers show its registers."""
    return ThreadState(number + 1, state.user_registers, state.xsave, 0, False)


def put_vcpus(vm: Vm, states: list[VcpuState], what: str) -> None:
    """Put the vCPUs of a fresh VM into a state; its memory is filled already.

    Args:
        what: where the state is from, for people.

    Raises:
        ImageError, UnsupportedError: this VM cannot have that state.
    """
    for vcpu, state in zip(vm.vcpus, states, strict=True):
        check_same_lists(vm, vcpu, what)
        vcpu.set_state(state)


def memory_of(vm: Vm, system: npt.NDArray[np.uint8]) -> Extents:
    """All of a VM's memory by guest-physical pages. `system`: what stands for the memory beside its RAM."""
    ram, first, parts = vm.ram.pages(), 0, []
    for slot in vm.ram.slots:
        parts.append((slot.gfn, ram[first : first + slot.pages]))
        first += slot.pages
    return Extents([*parts, (vm.system_address // PAGE, system.reshape(-1, PAGE))])


def put_pages(
    vm: Vm,
    ram: npt.NDArray[np.uint8],
    system: npt.NDArray[np.uint8],
    pages: npt.NDArray[np.uint64],
    contents: npt.NDArray[np.uint8],
) -> None:
    """Write pages of an epoch of a VM, sorted, to where they belong.

    Args:
        ram: shape (rows, 4096).
        system: the memory beside it, shape (bytes,).
        contents: shape (n, 4096).
    """
    at = vm.system_address // PAGE
    split = int(np.searchsorted(pages, at))
    ram[vm.ram.index(pages[:split])] = contents[:split]
    system.reshape(-1, PAGE)[(pages[split:] - np.uint64(at)).astype(np.int64)] = contents[split:]


def vm_facts(epoch: EpochFile) -> VmFacts:
    """What the image says of its VM.

    Raises:
        InvalidInputError: it is not the image of a VM.
    """
    if epoch.facts.vm is None:
        raise InvalidInputError(f"{epoch.path} is a checkpoint of a process, not of a VM")
    return epoch.facts.vm


def slots_of(epoch: EpochFile) -> list[Memslot]:
    with malformed(epoch.path):
        return [Memslot(int(gfn), int(pages)) for gfn, pages in vm_facts(epoch).slots]


def vcpu_states(epoch: EpochFile) -> list[VcpuState]:
    """The states in the order of the vCPUs.

    Raises:
        ImageError: the image does not have all of them.
    """
    with malformed(epoch.path):
        ours = [(kind, data) for name, kind, data in epoch.notes if name == NOTE_NAME]
        stored = [data for kind, data in ours if kind == NOTE_VCPU]
        states = decode_vcpus(stored or [_of_json(data) for kind, data in ours if kind == NOTE_VCPU_JSON])
        count = int(vm_facts(epoch).vcpus)
    if len(states) != count:
        raise ImageError(f"{epoch.path} holds {len(states)} vCPUs of {count}")
    return states


def read_memory(view: View, vm: Vm, ram: npt.NDArray[np.uint8], system: npt.NDArray[np.uint8]) -> None:
    """Fill zeroed RAM, shape (rows, 4096), and system memory, shape (bytes,), with those of an epoch.

    Raises:
        ImageError: the epoch's VM has another layout.
    """
    if vm_facts(view.epoch).system_bytes != system.size:
        raise ImageError(f"{view.epoch.path} was made by another version: its system memory is another")
    system[:] = 0
    for part in batches(view.pages):
        put_pages(vm, ram, system, part, view.read(part))


def check_same_lists(vm: Vm, vcpu: Vcpu, what: str) -> None:
    """Raises: ImageError: its system memory points to a log that this VM does not have."""
    if vcpu.mailbox.log != vm.system.log_at(vcpu.number):
        raise ImageError(f"{what} is of a VM with other lists of orders (list_rows)")


def load_vm(view: View, make: Callable[[GuestRam, int], Vm], huge: bool = False) -> tuple[GuestRam, Vm]:
    """A fresh VM in the state of an epoch, paused.

    Args:
        make: makes the VM, of a RAM and a number of vCPUs; with the same `list_rows` as the one before.
        huge: of its `GuestRam`.

    Raises:
        ImageError: it is not an epoch of a VM, or not whole.
        UnsupportedError: this host's KVM refuses the state.
    """
    states = vcpu_states(view.epoch)
    ram = GuestRam(slots=slots_of(view.epoch), shared=False, huge=huge)
    try:
        vm = make(ram, len(states))
        try:
            read_memory(view, vm, ram.pages(), vm.system_state)
            put_vcpus(vm, states, str(view.epoch.path))
        except BaseException:
            vm.close()
            raise
    except BaseException:
        ram.close()
        raise
    return ram, vm
