"""Output that is held: it is released in order, each byte and packet once, and it is bounded."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.errors import ImageError, RollbackRefusedError
from checkpoint.image import split_notes
from checkpoint.session import Session
from checkpoint.targets.vm import VmTarget
from checkpoint.targets.vm_state import load_vm, output_note, output_of
from kvmglue import Order, Outbox, Output, Vm, done, open_serial, post
from kvmglue._sys import lib
from tests.helpers import DEADLINE, wait_for
from tests.kvm.conftest import Machine, count, numbers
from uffdtrack.errors import CycleError, InvalidInputError

Make = Callable[..., Machine]
MOST = int(lib.KG_SERIAL_MOST)


def polls(vm: Vm) -> None:
    """Wait until the guest has asked a device often, without going on."""
    before = vm.vcpus[0].counts["ports"]
    wait_for(lambda: vm.vcpus[0].counts["ports"] > before + 3, "the guest asks again")


def test_held_output_is_released_in_order(machine: Make, tmp_path: Path) -> None:
    vm, out, rng = machine("kvm-bitmap").vm, tmp_path / "serial", random.Random(1)
    with Outbox(vm, open_serial(out)) as outbox:
        count(vm, 600)
        parts = [outbox.collect()]
        while not done(vm, 0):
            with vm.paused():
                parts.append(outbox.collect())
            held = outbox.released
            assert out.read_bytes() == numbers(600)[: held[0]]
            assert outbox.release((rng.randrange(held[0], outbox.collected[0] + 1), 0))
            assert outbox.release(held), "what is released already is no error, and nothing is written again"
        parts.append(outbox.collect())
        assert b"".join(part.serial for part in parts) == numbers(600)
        assert all(a.end == b.start for a, b in pairwise(parts))
        with pytest.raises(CycleError, match="collected"):
            outbox.release((outbox.collected[0] + 1, 0))
        assert outbox.release(outbox.collected) and out.read_bytes() == numbers(600)
        with pytest.raises(CycleError, match="restored"):
            outbox.restore((0, 0), Output())
    for closed in (outbox.collect, lambda: outbox.release((0, 0))):
        with pytest.raises(CycleError, match="closed"):
            closed()


@pytest.mark.parametrize("kind", ["count", "beacon"])
def test_a_guest_waits_at_the_bound(machine: Make, kind: str, tmp_path: Path) -> None:
    """It can be stopped there, and checkpointed; when there is room it goes on, and nothing is lost."""
    made = machine("kvm-bitmap")
    vm, most = made.vm, (MOST, int(lib.KG_PACKETS_MOST))
    with Outbox(vm, open_serial(tmp_path / "serial")) as outbox:
        held = Output(0, b"x" * (MOST - 20), 0, [b"x"] * (most[1] - 20))
        outbox.restore((0, 0), held)
        vm.resume()
        post(vm, 0, Order(kind, pages=8, n=200, pace=1))
        end = 0 if kind == "count" else 1
        got = [held]

        def is_full() -> bool:
            got.append(outbox.collect())
            return outbox.collected[end] >= most[end]

        wait_for(is_full, "as much is held as may be")
        with ChainWriter(tmp_path / "c", b"", False) as chain:
            session = Session(VmTarget(vm, made.tracker, kind, outbox), chain)
            for _ in range(5):
                polls(vm)
                with vm.paused():
                    assert vm.vcpus[0].state().registers["rip"]
                session.take()
        assert outbox.collected[end] == most[end], "it has sent nothing more"
        while not done(vm, 0):
            assert outbox.release(outbox.collected)
            got.append(outbox.collect())
        got.append(outbox.collect())
        assert outbox.release(outbox.collected)
        if kind == "count":
            assert (tmp_path / "serial").read_bytes() == held.serial + numbers(200)
        sent = [packet for part in got for packet in part.packets][len(held.packets) :]
        assert [int.from_bytes(p[14:22], "little") for p in sent] == [*range(1, 201)] * (kind == "beacon")


def test_vcpus_that_saw_room_at_once(machine: Make) -> None:
    """Each may send what it has seen room for, though another one was faster; so nothing is lost."""
    vm, vcpus, most = machine("kvm-bitmap", 4).vm, range(4), int(lib.KG_PACKETS_MOST)
    with Outbox(vm) as outbox:
        outbox.restore((0, 0), Output(0, b"", 0, [b"x"] * (most - 10)))
        packets = list[bytes]()
        vm.resume()
        for vcpu in vcpus:
            post(vm, vcpu, Order("beacon", first=100 * vcpu, pages=4, n=150))
        while not all(done(vm, vcpu) for vcpu in vcpus):
            packets += outbox.collect().packets
            assert outbox.collected[1] - outbox.released[1] <= most + len(vcpus)
            outbox.release((0, min(outbox.collected[1], outbox.released[1] + 2)))
        packets += outbox.collect().packets
    assert sorted(int.from_bytes(p[14:22], "little") for p in packets) == sorted([*range(1, 151)] * 4)


@pytest.mark.parametrize("kind", ["count", "beacon"])
def test_a_vm_is_closed_at_the_bound(machine: Make, kind: str) -> None:
    vm = machine("kvm-ring").vm
    lib.kg_hold(vm.native, MOST, lib.KG_PACKETS_MOST)
    vm.resume()
    post(vm, 0, Order(kind, pages=8, pace=1))
    polls(vm)
    vm.close()


def test_without_an_outbox_it_is_bounded_too(machine: Make) -> None:
    vm = machine("kvm-bitmap").vm
    lib.kg_hold(vm.native, MOST - 50, 0)
    count(vm, 300)
    text = b""
    while not done(vm, 0):
        part = vm.serial()
        assert len(part) <= 50
        text += part
    assert text + vm.serial() == numbers(300)


def test_one_thread_collects_another_releases(machine: Make, tmp_path: Path) -> None:
    vm = machine("kvm-bitmap").vm
    over = threading.Event()
    with Outbox(vm, open_serial(tmp_path / "serial")) as outbox:

        def releases() -> None:
            while not over.is_set():
                outbox.release(outbox.collected)

        thread = threading.Thread(target=releases)
        thread.start()
        try:
            count(vm, 500)
            while not done(vm, 0):
                outbox.collect()
            outbox.collect()
        finally:
            over.set()
            thread.join(DEADLINE)
        assert outbox.release(outbox.collected)
    assert (tmp_path / "serial").read_bytes() == numbers(500)


def test_parts_of_output() -> None:
    one, two = Output(5, b"abc", 2, [b"p"]), Output(8, b"de", 3, [b"q", b"r"])
    both = one.then(two)
    assert both == Output(5, b"abcde", 2, [b"p", b"q", b"r"]) and both.end == (10, 5)
    assert both.since(one.end) == two and both.since(both.start) == both
    assert both.since((9, 3)) == Output(9, b"e", 3, [b"q", b"r"])
    for bad in ((4, 2), (11, 5), (5, 6), (5, 1)):
        with pytest.raises(InvalidInputError):
            both.since(bad)
    with pytest.raises(InvalidInputError, match="followed"):
        two.then(one)


def test_a_fresh_vm_goes_on_with_the_output(machine: Make, tmp_path: Path) -> None:
    """What may not have been released when the VM was lost is released by the next one, then its own."""
    made, out = machine("kvm-clear"), tmp_path / "serial"
    whole: list[Output] = []  # up to each epoch
    with ChainWriter(tmp_path / "c", b"", False) as chain, Outbox(made.vm, open_serial(out)) as outbox:
        target = VmTarget(made.vm, made.tracker, "count", outbox)
        session = Session(target, chain)
        lib.kg_hold(made.vm.native, MOST, 0)
        count(made.vm, 400)
        for goal in (100, 200, 300):
            lib.kg_hold(made.vm.native, -100, 0)
            while outbox.collected[0] < goal:
                session.take()
                part = output_of(Chain(tmp_path / "c").open(len(whole)))
                assert part
                whole.append(whole[-1].then(part) if whole else part)
        assert whole[-1].serial == numbers(400)[:300]
        assert outbox.release((97, 0)) and out.read_bytes() == numbers(400)[:97]
        with pytest.raises(RollbackRefusedError, match="outbox"):
            target.rollback(Chain(tmp_path / "c").view(0))
    epoch = next(n for n, output in enumerate(whole) if output.end[0] >= 200)
    ram, vm = load_vm(Chain(tmp_path / "c").view(epoch), lambda ram, n: Vm(ram, n, list_rows=8192))
    with ram, vm, Outbox(vm, open_serial(out)) as outbox:
        outbox.restore((3, 0), whole[epoch])  # so much is known to be released
        vm.resume()
        while not done(vm, 0):
            outbox.pass_on()
            vm.wait_event(0.1)
        assert outbox.pass_on()
    assert out.read_bytes() == numbers(400)


def test_a_damaged_note(machine: Make, tmp_path: Path) -> None:
    made = machine("kvm-bitmap")
    with ChainWriter(tmp_path / "c", b"", False) as chain, Outbox(made.vm) as outbox:
        Session(VmTarget(made.vm, made.tracker, "count", outbox), chain).take()
    file = Chain(tmp_path / "c").open(0)
    assert output_of(file) == Output()
    some = Output(7, b"text", 2, [b"one", b"three"])
    ((_, kind, data, _),) = split_notes(output_note(some))
    assert kind == 0x75660008
    file.notes = [(b"uffdtrack", kind, data)]
    assert output_of(file) == some
    for bad in (b"", data[:20], data[:-1], data + b"x", data[:16] + b"\xff" * 8 + data[24:]):
        file.notes = [(b"uffdtrack", kind, bad)]
        with pytest.raises(ImageError):
            output_of(file)
    file.notes = []
    assert output_of(file) is None
