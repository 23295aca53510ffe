"""KVM guests, and KVM's own dirty trackers behind the interface of uffdtrack."""

from kvmglue.dirty_ring import ring_entries
from kvmglue.engines import (
    KVM_ENGINES,
    VM_ENGINES,
    bind_vcpus,
    checked_engine,
    engine_for,
    huge_for,
    open_tracker,
    rings_for,
)
from kvmglue.guests import PROGRAMS, Order, done, post, programs, stop, take_log, wait, written
from kvmglue.kvm import SMALLEST_RING, Capabilities, Kvm
from kvmglue.network import Tap, UdpPair, check_net, open_net
from kvmglue.outbox import NetBackend, Outbox, SerialBackend
from kvmglue.output import Output, Positions
from kvmglue.serial_port import SerialFifo, SerialFile, SerialStream, open_serial
from kvmglue.tracker import KvmTracker
from kvmglue.vcpu import Vcpu, VcpuExit, VcpuState
from kvmglue.vm import Vm

__all__ = [
    "KVM_ENGINES",
    "PROGRAMS",
    "SMALLEST_RING",
    "VM_ENGINES",
    "Capabilities",
    "Kvm",
    "KvmTracker",
    "NetBackend",
    "Order",
    "Outbox",
    "Output",
    "Positions",
    "SerialBackend",
    "SerialFifo",
    "SerialFile",
    "SerialStream",
    "Tap",
    "UdpPair",
    "Vcpu",
    "VcpuExit",
    "VcpuState",
    "Vm",
    "bind_vcpus",
    "check_net",
    "checked_engine",
    "done",
    "engine_for",
    "huge_for",
    "open_net",
    "open_serial",
    "open_tracker",
    "post",
    "programs",
    "ring_entries",
    "rings_for",
    "stop",
    "take_log",
    "wait",
    "written",
]
