"""A guest of each kind: RAM, tracker, vCPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvmglue import KVM_ENGINES, SMALLEST_RING, Kvm, Vm, bind_vcpus, rings_for
from kvmglue import open_tracker as open_vm_tracker
from tests.conftest import missing
from tests.contract.combinations import PAGES, TRAITS, Config, exists
from tests.contract.guests import (
    DEADLINE,
    WRITE,
    AttachedVcpu,
    KvmVcpu,
    ProcessVcpu,
    Target,
    ThreadVcpu,
    load,
)
from tests.helpers import rows_that_differ
from uffdtrack import DirtyPages, GuestRam, ProcessRam, choose_engine, open_tracker, probe
from uffdtrack.errors import UffdtrackError, UnsupportedError, VcpuGoneError

LONGEST = 200_000
"""Rows in the longest order that a test gives."""


@dataclass
class Guest:
    """A RAM, its tracker and its vCPUs; and a shadow copy, which only harvested pages go to."""

    ram: GuestRam | ProcessRam
    tracker: Any
    vcpus: list[Any]
    vm: Vm | None = None
    shadow: Any = field(init=False)
    _before: Any = field(init=False)

    def __post_init__(self) -> None:
        self.shadow = self.ram.array.copy()
        self._before = self.shadow.copy()

    def write(self, vcpu: int, pages: list[int], value: int = 1) -> None:
        self.vcpus[vcpu].post(WRITE, pages, value)
        assert self.vcpus[vcpu].wait()
        assert self.vcpus[vcpu].result() == 0

    def index(self, pages: DirtyPages) -> list[int]:
        """Rows of the RAM: what the writers call a page."""
        return self.ram.index(pages.gfn).tolist()

    def copy(self, pages: DirtyPages) -> None:
        rows, shadow = self.ram.index(pages.gfn), self.shadow.reshape(-1, 4096)
        if isinstance(self.ram, ProcessRam):  # where all pages would be read
            for row in rows.tolist():
                shadow[row] = self.ram.read(row, 1)[0]
        else:
            shadow[rows] = self.ram.pages()[rows]

    def stale(self) -> list[int]:
        """Pages of which the shadow is not what the RAM is: lost ones."""
        return rows_that_differ(self.shadow, self.ram.pages())

    @contextmanager
    def standing(self) -> Iterator[None]:
        """No vCPU is to write meanwhile."""
        if isinstance(self.ram, ProcessRam):
            self._before = self.ram.array
        else:  # one copy for all times: a new one's pages cost more than what is copied
            np.copyto(self._before, self.ram.array)
        yield
        assert not rows_that_differ(self._before, self.ram.array), "a vCPU wrote in the pause"


def until_gone(tracker: Any) -> tuple[int, ...]:
    """The vCPUs that a pause says have ended. A thread that was joined may be there for a moment."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            tracker.pause()
        except VcpuGoneError as error:
            return error.vcpus
        tracker.resume()
    raise AssertionError("nobody has ended")


def need_kvm() -> None:
    try:
        Kvm().close()
    except UffdtrackError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def library_path(build: Callable[..., Path]) -> Path:
    return build("guest", "-shared", "-fPIC")


@pytest.fixture(scope="session")
def library(library_path: Path) -> Any:
    return load(library_path)


@pytest.fixture(params=list(TRAITS))
def engine(request: pytest.FixtureRequest) -> str:
    if request.param in KVM_ENGINES:
        need_kvm()
        return str(request.param)
    try:
        choose_engine(request.param, probe(), pages=PAGES)
    except UnsupportedError as error:
        missing(str(error))
    return str(request.param)


@pytest.fixture
def make(library: Any, library_path: Path) -> Iterator[Callable[..., Guest]]:
    """Build guests; all is taken down with the test."""
    with ExitStack() as stack:

        def build(engine: str, config: Config, max_dirty_pages: int | None = None) -> Guest:
            assert exists(engine, config), "a combination that should not have been generated"
            if config.kind == "kvm" or engine in KVM_ENGINES:
                return kvm(engine, config, max_dirty_pages)
            if config.kind == "attached":
                return attached(engine, config, max_dirty_pages)
            ram = stack.enter_context(GuestRam(slots=config.slots, shared=config.shared, huge=config.huge))
            ram.pages()[:, 0] = 1  # populated, as the RAM of a guest that has booted is
            tracker = stack.enter_context(
                open_tracker(ram, engine, vcpus=config.vcpus, max_dirty_pages=max_dirty_pages)
            )
            vcpus: list[Any] = []
            for i in range(config.vcpus):
                vcpu = (
                    ThreadVcpu(library, tracker, ram, i)
                    if config.kind == "threads" or (config.kind == "mixed" and i % 2)
                    else ProcessVcpu(library_path, ram, i)
                )
                stack.callback(vcpu.end)
                vcpus.append(vcpu)
            tracker.wait_joined()
            stack.callback(tracker.close)  # first of all: nobody stands at a gate when it is told to end
            return Guest(ram, tracker, vcpus)

        def kvm(engine: str, config: Config, max_dirty_pages: int | None) -> Guest:
            need_kvm()
            if max_dirty_pages and engine == "kvm-ring":  # see docs: it cannot do less
                max_dirty_pages = max(max_dirty_pages, SMALLEST_RING * config.vcpus)
            ram = stack.enter_context(GuestRam(slots=config.slots, shared=config.shared, huge=config.huge))
            ram.pages()[:, 0] = 1
            rings = rings_for(engine, config.vcpus, max_dirty_pages)
            vm = stack.enter_context(Vm(ram, config.vcpus, ring_entries=rings, list_rows=LONGEST))
            opened = open_vm_tracker(vm, engine, max_dirty_pages=max_dirty_pages)
            tracker: Any = stack.enter_context(opened)
            bind_vcpus(tracker, vm)
            vcpus = [KvmVcpu(vm, i) for i in range(config.vcpus)]
            vm.resume()
            for vcpu in vcpus:
                stack.callback(vcpu.end)
            stack.callback(tracker.close)
            return Guest(ram, tracker, vcpus, vm)

        def attached(engine: str, config: Config, max_dirty_pages: int | None) -> Guest:
            target = Target(library_path, PAGES * 4096, config.vcpus)
            stack.callback(target.end)
            ram = stack.enter_context(ProcessRam(target.process.pid, target.address, slots=config.slots))
            tracker = stack.enter_context(
                open_tracker(ram, engine, vcpus=config.vcpus, max_dirty_pages=max_dirty_pages)
            )
            vcpus = [AttachedVcpu(target, tracker, i) for i in range(config.vcpus)]
            for vcpu in vcpus:
                stack.callback(vcpu.end)
            stack.callback(tracker.close)
            return Guest(ram, tracker, vcpus)

        yield build
