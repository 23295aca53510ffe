"""The guests that write: on KVM, and without it for engines that KVM's writes escape."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

import kvmglue
from benchmarks.ab.native import NativeGuest
from kvmglue import VM_ENGINES, Kvm, Order, Vm, bind_vcpus, ring_entries
from uffdtrack import GuestRam, Tracker, open_tracker
from uffdtrack.errors import TrackerError

NATIVE_ENGINES = ("ring", "inline")
AB_ENGINES = (*VM_ENGINES, *NATIVE_ENGINES)
DEADLINE = 60.0
Rows = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Point:
    """What one comparison is of.

    Attributes:
        series: "dirty" (RAM fixed), "ram" (dirty pages fixed).
        ram: bytes.
        dirty: pages in a cycle.
        vcpus: how many.
        limit: the threshold; None: there is none.
        tracked: whether it is.
    """

    series: str
    ram: int
    dirty: int
    vcpus: int
    limit: int | None = None
    tracked: bool = True


class Guest(Protocol):
    tracker: Tracker
    arm_us: float

    def write(self, parts: Sequence[Rows], value: int) -> float:
        """Have each vCPU write its rows; returns microseconds, of the slowest one."""

    def storm(self, parts: Sequence[Rows]) -> None: ...
    def written(self) -> int: ...
    def end_storm(self) -> None: ...
    def log(self) -> set[int]:
        """The rows that were written, by the guest's own account."""


class _KvmGuest:
    def __init__(self, stack: ExitStack, ram: GuestRam, engine: str, point: Point) -> None:
        most = Kvm()
        entries = 0
        if engine == "kvm-ring":
            entries = most.capabilities.ring_entries
            if point.limit:
                entries = ring_entries(point.limit, point.vcpus)
        most.close()
        room = max(point.dirty, 4096)
        self.vm = stack.enter_context(Vm(ram, point.vcpus, ring_entries=entries, list_rows=room))
        self.tracker: Tracker = kvmglue.open_tracker(self.vm, engine, max_dirty_pages=point.limit)
        stack.callback(self.tracker.close)
        started = time.perf_counter()
        self.tracker.activate()
        bind_vcpus(self.tracker, self.vm)
        self.arm_us = (time.perf_counter() - started) * 1e6
        if not point.tracked:
            self.tracker.deactivate()
        self.vm.resume()

    def write(self, parts: Sequence[Rows], value: int) -> float:
        for vcpu, rows in enumerate(parts):
            kvmglue.post(self.vm, vcpu, Order("write", rows=rows, value=value))
        for vcpu in range(len(parts)):
            if not kvmglue.wait(self.vm, vcpu, DEADLINE):
                raise TrackerError(f"vCPU {vcpu} did not write its pages within {DEADLINE:.0f} s")
        return max(vcpu.took_us for vcpu in self.vm.vcpus)

    def storm(self, parts: Sequence[Rows]) -> None:
        for vcpu, rows in enumerate(parts):
            kvmglue.post(self.vm, vcpu, Order("storm", rows=rows))

    def written(self) -> int:
        return sum(kvmglue.written(self.vm, vcpu) for vcpu in range(len(self.vm.vcpus)))

    def end_storm(self) -> None:
        for vcpu in range(len(self.vm.vcpus)):
            kvmglue.stop(self.vm, vcpu)

    def log(self) -> set[int]:
        return {row for i in range(len(self.vm.vcpus)) for row in kvmglue.take_log(self.vm, i).tolist()}


class _NativeGuest:
    def __init__(self, stack: ExitStack, ram: GuestRam, engine: str, point: Point) -> None:
        self.tracker: Tracker = open_tracker(ram, engine, vcpus=point.vcpus, max_dirty_pages=point.limit)
        stack.callback(self.tracker.close)
        started = time.perf_counter()
        if point.tracked:
            self.tracker.activate()
        self.arm_us = (time.perf_counter() - started) * 1e6
        self.vcpus: list[NativeGuest] = []
        for number in range(point.vcpus):
            self.vcpus.append(NativeGuest(ram, number, point.tracked, touch=not point.limit))
            stack.callback(self.vcpus[-1].close)
            self.arm_us += self.vcpus[-1].join_us
        self._wrote: list[Rows] = []

    def write(self, parts: Sequence[Rows], value: int) -> float:
        self._wrote += parts
        for vcpu, rows in zip(self.vcpus, parts, strict=True):
            vcpu.post(rows, value)
        for vcpu in self.vcpus:
            if not vcpu.wait(DEADLINE):
                raise TrackerError(f"a vCPU did not write its pages within {DEADLINE:.0f} s")
        return max(vcpu.took_us for vcpu in self.vcpus)

    def storm(self, parts: Sequence[Rows]) -> None:
        for vcpu, rows in zip(self.vcpus, parts, strict=True):
            vcpu.post(rows, 1, storm=True)

    def written(self) -> int:
        return sum(vcpu.written for vcpu in self.vcpus)

    def end_storm(self) -> None:
        for vcpu in self.vcpus:
            vcpu.stop()

    def log(self) -> set[int]:
        wrote, self._wrote = self._wrote, []
        return {row for rows in wrote for row in rows.tolist()}


def make_guest(stack: ExitStack, ram: GuestRam, engine: str, point: Point) -> Guest:
    kind = _NativeGuest if engine in NATIVE_ENGINES else _KvmGuest
    return kind(stack, ram, engine, point)
