"""A vCPU's state that is refused, and one that lacks what KVM refuses."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.kvm.conftest import Machine
from uffdtrack.errors import UnsupportedError

Make = Callable[..., Machine]


def test_a_state_of_another_size_is_refused(machine: Make) -> None:
    vcpu = machine("kvm-bitmap").vm.vcpus[0]
    state = vcpu.state()
    with pytest.raises(UnsupportedError, match="bytes"):
        vcpu.set_state(type(state)((state.parts[0][:-8], *state.parts[1:]), state.msr_data))
    with pytest.raises(UnsupportedError, match="MSR"):
        vcpu.set_state(type(state)(state.parts, state.msr_data + struct.pack("<QQ", 0xFFFF0000, 1)))
    with pytest.raises(UnsupportedError, match="MSR"):
        vcpu.set_state(type(state)(state.parts, state.msr_data + struct.pack("<QQ", 1 << 32, 1)))
    assert vcpu.state().same(state)


@pytest.mark.parametrize("at", [0, 3, -1])
def test_an_msr_that_kvm_lists_and_refuses(at: int, machine: Make) -> None:
    """It is none of the state: that is so of MSRs that are for other guests."""
    vm = machine("kvm-bitmap").vm
    state, indexes = vm.vcpus[0].state(), list(vm.msr_indexes)
    vm.msr_indexes.insert(at % (len(indexes) + 1), 0xC0DEC0DE)
    assert vm.vcpus[0].state().same(state)
    assert list(vm.msr_indexes) == indexes
    vm.vcpus[0].set_state(state)
