"""A VM with its tracker, for the tests of KVM."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from kvmglue import VM_ENGINES, Order, Vm, bind_vcpus, open_tracker, post, rings_for, wait, written
from tests.contract.conftest import need_kvm
from tests.helpers import DEADLINE, rows_that_differ
from uffdtrack import GuestRam

PAGES = 2048


def run_on(vm: Vm, vcpu: int, operations: int) -> None:
    """Wait until a guest has written that often again."""
    deadline, was = time.monotonic() + DEADLINE, written(vm, vcpu)
    while written(vm, vcpu) < was + operations and not vm.vcpus[vcpu].exit:
        assert time.monotonic() < deadline, "the guest does not go on"


def printed(vm: Vm) -> bytes:
    """What comes to the serial port, up to the next whole line."""
    deadline, text = time.monotonic() + DEADLINE, b""
    while not text.endswith(b"\n"):
        assert time.monotonic() < deadline, "nothing is printed"
        vm.wait_event(0.1)
        text += vm.serial()
    return text


def numbers(n: int) -> bytes:
    """What a guest prints that counts up to n."""
    return b"".join(b"%d\n" % i for i in range(1, n + 1))


def count(vm: Vm, n: int) -> None:
    vm.resume()
    post(vm, 0, Order("count", pages=8, n=n, pace=1))


@dataclass
class Machine:
    ram: GuestRam
    vm: Vm
    tracker: Any

    def copy_to(self, shadow: Any) -> None:
        """What was harvested goes to a shadow of the RAM."""
        rows = self.ram.index(self.tracker.exchange().gfn)
        shadow[rows] = self.ram.pages()[rows]

    def stale(self, shadow: Any) -> list[int]:
        return rows_that_differ(shadow, self.ram.pages())


def write(there: Machine, first: int, pages: int, value: int, kind: str = "sequential", n: int = 0) -> None:
    """The guest has written when this returns, and runs."""
    there.vm.resume()
    post(there.vm, 0, Order(kind, first=first, pages=pages, n=n or pages, value=value, seed=value + 1))
    assert wait(there.vm, 0, DEADLINE)


@pytest.fixture(scope="session")
def kvm(kernel: None) -> None:
    need_kvm()


@pytest.fixture(params=list(VM_ENGINES))
def vm_engine(request: pytest.FixtureRequest, kvm: None) -> str:
    return str(request.param)


@pytest.fixture
def machine(kvm: None) -> Iterator[Callable[..., Machine]]:
    """Build VMs; each is paused, its tracker active."""
    with ExitStack() as stack:

        def build(
            engine: str, vcpus: int = 1, *, limit: int | None = None, rings: int | None = None
        ) -> Machine:
            ram = stack.enter_context(GuestRam(PAGES * 4096, shared=False))
            ram.pages()[:, 0] = 1
            entries = rings_for(engine, vcpus, limit) if rings is None else rings
            vm = stack.enter_context(Vm(ram, vcpus, ring_entries=entries, list_rows=8192))
            tracker = open_tracker(vm, engine, max_dirty_pages=limit)
            stack.callback(tracker.close)
            tracker.activate()
            bind_vcpus(tracker, vm)
            return Machine(ram, vm, tracker)

        yield build
