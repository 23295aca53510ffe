"""The machine: what KVM refuses, how vCPUs stop and end, what the guest program does."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import numpy as np
import pytest

from kvmglue import (
    Capabilities,
    Kvm,
    Order,
    Vm,
    done,
    open_tracker,
    post,
    programs,
    ring_entries,
    stop,
    take_log,
    wait,
    written,
)
from kvmglue.kvm import check_ring
from tests.helpers import DEADLINE
from tests.kvm.conftest import PAGES, Machine, printed, run_on
from uffdtrack import GuestRam, Memslot
from uffdtrack.errors import (
    CycleError,
    GuestError,
    InvalidInputError,
    PermissionDeniedError,
    UnsupportedError,
)

Make = Callable[..., Machine]


def test_no_kvm_here() -> None:
    with pytest.raises(UnsupportedError, match="no KVM here"):
        Kvm("/dev/there-is-none")
    with pytest.raises(UnsupportedError):
        Kvm("/dev/null")


def test_no_permission(kvm: None, root: None) -> None:
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            Kvm()
        except PermissionDeniedError as error:
            os._exit(0 if "group kvm" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(1)  # /dev/kvm is open to everybody here
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 1)


@pytest.mark.parametrize("entries", [1, 100, 128, 257, 1 << 17, 1 << 30])
def test_rings_that_kvm_refuses(kvm: None, entries: int) -> None:
    with GuestRam("1MiB", shared=False) as ram, pytest.raises(InvalidInputError, match="power of 2"):
        Vm(ram, ring_entries=entries)


def test_a_kvm_without_rings() -> None:
    old = Capabilities(vcpus=4, memslots=32, ring_entries=0, manual_clear=False, xsave_bytes=4096)
    with pytest.raises(UnsupportedError, match="no dirty ring"):
        check_ring(4096, old)


def test_sizes_that_cannot_be(kvm: None) -> None:
    with GuestRam("1MiB", shared=False) as ram:
        for vcpus in (0, 17, -1):
            with pytest.raises(InvalidInputError, match="vCPUs"):
                Vm(ram, vcpus)
    with GuestRam(slots=[Memslot(1 << 27, 4)], shared=False) as ram:
        with pytest.raises(InvalidInputError, match="256 GiB"):
            Vm(ram)


def test_engines_that_are_not_for_vms(machine: Make) -> None:
    vm = machine("scan").vm
    for engine, why in (("ring", "GUP"), ("inline", "signal handler"), ("kvm-none", "there are")):
        with pytest.raises(InvalidInputError, match=why):
            open_tracker(vm, engine)
    with pytest.raises(InvalidInputError, match="ring_entries"):
        open_tracker(vm, "kvm-ring")
    with pytest.raises(InvalidInputError, match="forced pause"):
        open_tracker(vm, "kvm-bitmap", max_dirty_pages=1000)
    with pytest.raises(InvalidInputError, match="no bitmap"):
        open_tracker(machine("kvm-ring").vm, "kvm-bitmap")
    with pytest.raises(InvalidInputError, match="1024 or more"):
        ring_entries(1000, 4)
    with pytest.raises(InvalidInputError, match="hold"):
        open_tracker(machine("kvm-ring", rings=4096).vm, "kvm-ring", max_dirty_pages=1000)


def test_one_of_kvms_trackers_at_a_time(machine: Make) -> None:
    made = machine("kvm-bitmap")
    other = open_tracker(made.vm, "kvm-clear")
    with pytest.raises(CycleError, match="another"):
        other.activate()
    made.tracker.close()
    with other:
        made.vm.resume()
        post(made.vm, 0, Order("write", rows=[5]))
        assert wait(made.vm, 0, DEADLINE)
        assert other.exchange().gfn.tolist() == [5]


def test_a_guest_that_shuts_down(machine: Make) -> None:
    made = machine("kvm-bitmap", 2)
    made.vm.resume()
    post(made.vm, 1, Order("crash"))
    with pytest.raises(GuestError, match="shut down") as caught:
        made.vm.wait_ended(DEADLINE)
    assert caught.value.vcpu == 1
    post(made.vm, 0, Order("write", rows=[1]))
    made.vm.pause()  # an ended one does not keep the others waiting
    assert made.vm.vcpus[1].state().registers["rip"]


def test_orders_that_cannot_be(machine: Make) -> None:
    vm = machine("kvm-bitmap").vm
    for order in (
        Order("dance"),
        Order("write", rows=[PAGES]),
        Order("write", rows=range(9000)),
        Order("random", first=PAGES, pages=1),
        Order("check", pages=1),
    ):
        with pytest.raises(InvalidInputError):
            post(vm, 0, order)
    post(vm, 0, Order("write", rows=[1]))
    with pytest.raises(InvalidInputError, match="last order"):
        post(vm, 0, Order("write", rows=[1]))
    for bad in (("x", 1, 100), ("count", 8, 100)):
        with pytest.raises(InvalidInputError):
            programs(*bad)


def test_patterns(machine: Make) -> None:
    """What a guest says that it wrote is what it was ordered to write, and what is in the RAM."""
    made = machine("kvm-clear", 2)
    made.vm.resume()

    def do(vcpu: int, order: Order) -> set[int]:
        post(made.vm, vcpu, order)
        assert wait(made.vm, vcpu, DEADLINE)
        rows = set(take_log(made.vm, vcpu).tolist())
        for row in rows if order.kind != "same" else ():
            assert made.ram.pages()[row, row % 4096] == order.value
        return rows

    assert do(0, Order("write", rows=[7, 3, 3, 2000], value=9)) == {3, 7, 2000}
    assert do(1, Order("sequential", first=10, pages=20, n=25, value=8)) == set(range(10, 30))
    found = do(0, Order("random", first=100, pages=500, n=3000, value=7, seed=3))
    assert found <= set(range(100, 600)) and len(found) > 450
    state, expected = 7, set()
    for _ in range(3000):  # xorshift64
        state ^= state << 13 & (1 << 64) - 1
        state ^= state >> 7
        state ^= state << 17 & (1 << 64) - 1
        expected.add(100 + (state >> 8) // 10 % 500)
    assert found == expected
    hot = do(1, Order("hot_cold", first=0, pages=2000, n=200, value=6, hot=20))
    assert set(range(20)) <= hot and 20 < len(hot) < 60
    made.ram.array[:] = 0
    for vcpu in range(2):
        post(made.vm, vcpu, Order("same", first=33, pages=1, n=20_000))
    for vcpu in range(2):
        assert wait(made.vm, vcpu, DEADLINE)
    assert int(made.ram.page(33).view(np.uint64)[0]) == 40_000


def test_devices_write_for_the_guest(machine: Make, vm_engine: str) -> None:
    made = machine(vm_engine, 2)
    shadow = made.ram.pages().copy()
    made.vm.resume()
    made.copy_to(shadow)
    for value in range(3):
        for vcpu in range(2):
            post(made.vm, vcpu, Order("fill", rows=range(vcpu, 300, 3), value=value + 5))
            assert wait(made.vm, vcpu, DEADLINE)
        made.copy_to(shadow)
        assert not made.stale(shadow)
        assert (made.ram.pages()[0:300:3] == value + 5).all()


def test_a_kick_is_never_lost(machine: Make) -> None:
    """Pauses at any instant: a vCPU that spins, one that is in ports all the time, one that sleeps, one that
    faults."""
    made = machine("kvm-bitmap", 4)
    made.vm.resume()
    post(made.vm, 0, Order("spin", n=1 << 60))
    post(made.vm, 1, Order("count", first=600, pages=4, pace=1))
    post(made.vm, 3, Order("storm", rows=range(500)))
    rng, before = random.Random(1), [0] * 4
    for _ in range(150):
        with made.vm.paused():
            assert all(vcpu.state().registers["rip"] for vcpu in made.vm.vcpus)
            here = [written(made.vm, i) for i in range(4)]
            assert here == [written(made.vm, i) for i in range(4)]
        if rng.random() < 0.3:
            made.tracker.exchange()
        deadline = time.monotonic() + DEADLINE
        while written(made.vm, 3) == here[3] and time.monotonic() < deadline:
            pass  # it goes on
        assert written(made.vm, 3) > before[3]
        before = here
    for vcpu in (1, 3):
        stop(made.vm, vcpu)
        assert wait(made.vm, vcpu, DEADLINE)
    assert done(made.vm, 2) and printed(made.vm)


def test_state_is_put_back_register_by_register(machine: Make) -> None:
    made = machine("kvm-bitmap", 2)
    made.vm.resume()
    post(made.vm, 0, Order("check", pages=100, pace=5000))
    post(made.vm, 1, Order("check", first=200, pages=100, pace=5000))
    for _ in range(80):
        with made.vm.paused():
            ram, system = made.ram.array.copy(), made.vm.system_state.copy()
            states = [vcpu.state() for vcpu in made.vm.vcpus]
        run_on(made.vm, 0, 5)
        with made.vm.paused():
            made.ram.array[:] = ram
            made.vm.system_state[:] = system
            for vcpu, state in zip(made.vm.vcpus, states, strict=True):
                vcpu.set_state(state)
                assert vcpu.state().same(state)
    for vcpu in range(2):
        stop(made.vm, vcpu)
        assert wait(made.vm, vcpu, DEADLINE)
    assert b"T" not in made.vm.serial()


def test_a_forked_child_has_no_vm(machine: Make) -> None:
    made = machine("kvm-bitmap")
    made.vm.resume()
    child = os.fork()
    if not child:
        made.tracker.close()
        made.vm.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    post(made.vm, 0, Order("write", rows=[5]))
    assert wait(made.vm, 0, DEADLINE)
    assert 5 in made.tracker.exchange().gfn.tolist()


def test_state_of_one_that_runs_is_refused(machine: Make) -> None:
    made = machine("kvm-bitmap")
    made.vm.resume()
    post(made.vm, 0, Order("spin", n=1 << 60))
    with pytest.raises(InvalidInputError, match="pause"):
        made.vm.vcpus[0].state()


def test_how_long_an_order_took(machine: Callable[..., Machine]) -> None:
    """Also of one that was there before the vCPU first looked, and of the next one that comes at once."""
    made = machine("kvm-bitmap")
    began = time.perf_counter()
    post(made.vm, 0, Order("spin", n=1000))
    made.vm.resume()
    for _ in range(20):
        assert wait(made.vm, 0, DEADLINE)
        assert 0 < made.vm.vcpus[0].took_us <= (time.perf_counter() - began + 1) * 1e6
        post(made.vm, 0, Order("spin", n=1000))
    assert wait(made.vm, 0, DEADLINE)
