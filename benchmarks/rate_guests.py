"""The guests of benchmarks/rate.py: two vCPU processes that run rate.c, or a VM that does about the same."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import kvmglue
from kvmglue import Kvm, Order, Vm
from uffdtrack import GuestRam, join, open_tracker

VCPUS = 2
POOL = 1 << 16
"""Pages of the RAM that exist, scattered over all of it."""
DEADLINE = 60.0
CONTEXT = multiprocessing.get_context("spawn")
HEAD = 6
"""Words of struct rate_control before its pages; the third one is `cycle` and `quit`."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the guest writes in a cycle.

    Attributes:
        hot: pages that are the same in every cycle.
        anew: pages that are drawn anew in every cycle.
    """

    hot: int
    anew: int

    @property
    def name(self) -> str:
        return f"{self.hot + self.anew} pages, {self.hot} of them hot"


def build(directory: Path) -> Path:
    out = directory / "rate.so"
    source = Path(__file__).with_name("rate.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", out, source], check=True)
    return out


def pin(tid: int, vcpu: int) -> None:
    """A vCPU has a processor of its own, as on hosts that care for it; the tracker's thread has none."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(tid, {allowed[vcpu % len(allowed)]})


def _vcpu(path: Path, ram_name: str, control_name: str, number: int, pipe: Connection) -> None:
    library = ctypes.CDLL(str(path))
    library.rate_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    pin(0, number)
    control = GuestRam.attach(control_name)
    at = control.address + number * (control.size // VCPUS)
    while (tracked := pipe.recv()) is not None:
        if tracked:
            with join(ram_name, number) as vcpu:
                pipe.send("joined")
                library.rate_run(vcpu.ram.address, at)
        else:
            with GuestRam.attach(ram_name) as ram:
                ram.array[:: 4096 * 512].sum()
                pipe.send("ready")
                library.rate_run(ram.address, at)
        ram = vcpu = None
        pipe.send("done")


class Guest(Protocol):
    tracker: Any

    def steps(self) -> int: ...
    def next_cycle(self) -> None:
        """From now on, other pages than in the last one; the guest stands, or is not tracked."""


class Processes:
    """Two processes, each of which is a vCPU while a tracker is active."""

    def __init__(self, directory: Path, size: str) -> None:
        self.ram = GuestRam(size)
        step = self.ram.size // 4096 // POOL
        rng = np.random.default_rng(1)
        self.pool = (np.arange(POOL) * step + rng.integers(0, step, POOL)).astype(np.uint32)
        self.ram.pages()[self.pool, 0] = 1
        rng.shuffle(self.pool)
        self.control = GuestRam((HEAD * 8 + POOL * 4 + 4095) // 4096 * 4096 * VCPUS)
        self.words = self.control.array.view(np.uint64).reshape(VCPUS, -1)
        self.flags = self.control.array.view(np.uint32).reshape(VCPUS, -1)
        self.pipes: list[Any] = []
        self.processes = []
        path = build(directory)
        for number in range(VCPUS):
            ours, theirs = CONTEXT.Pipe()
            args = (path, self.ram.name, self.control.name, number, theirs)
            process = CONTEXT.Process(target=_vcpu, args=args, daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        self.tracker: Any = None

    def _ask(self, what: object) -> None:
        for pipe in self.pipes:
            pipe.send(what)

    def _hear(self) -> None:
        for pipe in self.pipes:
            assert pipe.poll(DEADLINE)
            pipe.recv()

    @contextmanager
    def running(self, engine: str | None, load: Load) -> Iterator[Guest]:
        for vcpu in range(VCPUS):
            words = self.words[vcpu]
            words[:] = 0
            words[3], words[4], words[5] = load.hot // VCPUS, load.anew // VCPUS, POOL // VCPUS
            words.view(np.uint32)[HEAD * 2 :][: POOL // VCPUS] = self.pool[vcpu::VCPUS]
        if engine:
            self.tracker = open_tracker(self.ram, engine, vcpus=VCPUS)
            self.tracker.activate()
        self._ask(bool(engine))
        self._hear()
        try:
            yield self
        finally:
            self.flags[:, 5] = 1
            self._hear()
            if engine:
                self.tracker.close()

    def steps(self) -> int:
        return int(self.words[:, 0].sum())

    def next_cycle(self) -> None:
        self.flags[:, 4] += 1

    def close(self) -> None:
        self._ask(None)
        for process in self.processes:
            process.join(DEADLINE)
        self.ram.close()
        self.control.close()


class Machine:
    """A VM. Its program writes a list of rows again and again, without other work in between."""

    def __init__(self, size: str, pool: Any) -> None:
        self.ram = GuestRam(size)
        self.pool = pool
        self.ram.pages()[pool, 0] = 1
        self.cycle = 0

    @contextmanager
    def running(self, engine: str | None, load: Load) -> Iterator[Guest]:
        self.load = load
        rings = Kvm().capabilities.ring_entries if engine == "kvm-ring" else 0
        with Vm(self.ram, VCPUS, ring_entries=rings, list_rows=8192) as self.vm:
            if engine:
                self.tracker = kvmglue.open_tracker(self.vm, engine)
                self.tracker.activate()
            for vcpu in self.vm.vcpus:
                pin(vcpu.tid, vcpu.number)
            self.vm.resume()
            for vcpu in range(VCPUS):
                rows = self.pool[vcpu::VCPUS][: (load.hot + load.anew) // VCPUS]
                kvmglue.post(self.vm, vcpu, Order("storm", rows=rows))
            try:
                yield self
            finally:
                for vcpu in range(VCPUS):
                    kvmglue.stop(self.vm, vcpu)
                if engine:
                    self.tracker.close()

    def steps(self) -> int:
        return sum(kvmglue.written(self.vm, vcpu) for vcpu in range(VCPUS))

    def next_cycle(self) -> None:
        hot, anew = self.load.hot // VCPUS, self.load.anew // VCPUS
        self.cycle += 1
        for vcpu in range(VCPUS if anew else 0):
            at = hot + self.cycle * anew % (POOL // VCPUS - hot - anew)
            self.vm.system.rows(vcpu)[hot : hot + anew] = self.pool[vcpu::VCPUS][at : at + anew]

    def close(self) -> None:
        self.ram.close()
