"""Epochs of VMs: whole, and the guest goes on from each as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.cli.vm import tell_verdict
from checkpoint.errors import ImageError, RollbackRefusedError
from checkpoint.image import EpochFile
from checkpoint.session import Session
from checkpoint.targets.vm import VmTarget
from checkpoint.targets.vm_state import load_vm, read_memory, vcpu_states
from kvmglue import Order, VcpuExit, Vm, post, rings_for, stop, wait
from tests.helpers import DEADLINE, Run, broken
from tests.kvm.conftest import Machine, printed, run_on

Make = Callable[..., Machine]
PACE = 2000


def check_all(made: Machine) -> None:
    """Every vCPU changes a structure that tears, in rows of its own."""
    made.vm.resume()
    part = 256
    for vcpu in range(len(made.vm.vcpus)):
        post(made.vm, vcpu, Order("check", first=vcpu * part, pages=part, pace=PACE, seed=vcpu + 1))
    for vcpu in range(len(made.vm.vcpus)):
        run_on(made.vm, vcpu, 10)


def continued(directory: Path, epoch: int) -> bytes:
    """Continue an epoch in a fresh VM until each vCPU has checked its structure; returns what it printed."""
    chain = Chain(directory)
    view = chain.view(epoch, chain.verify(b""))
    ram, vm = load_vm(view, lambda ram, vcpus: Vm(ram, vcpus, list_rows=8192))
    with ram, vm:
        for vcpu, state in zip(vm.vcpus, vcpu_states(view.epoch), strict=True):
            assert vcpu.state().same(state), "register by register"
        vm.resume()
        for i in range(len(vm.vcpus)):
            run_on(vm, i, 2 * PACE)
        return printed(vm)


def test_guests_go_on_from_every_epoch(machine: Make, vm_engine: str, tmp_path: Path) -> None:
    limit = {"sync": 1100, "kvm-ring": 1024}.get(vm_engine)
    made, rng = machine(vm_engine, 2, limit=limit), random.Random(1)
    check_all(made)
    with ChainWriter(tmp_path / "c", b"", False) as chain:
        target = VmTarget(made.vm, made.tracker, "check")
        session = Session(target, chain)
        for _ in range(8):
            session.take()
            if limit and rng.random() < 0.7:
                made.tracker.wait_full(0.05)
            else:
                run_on(made.vm, 0, rng.randrange(limit // 10 if limit else 500))
    made.tracker.close()
    assert b"T" not in made.vm.serial()
    for epoch in (0, 3, 7):
        text = continued(tmp_path / "c", epoch)
        assert b"T" not in text and re.search(rb"^\d+$", text, re.MULTILINE), text


@pytest.mark.parametrize("engine", ["kvm-bitmap", "kvm-ring", "scan"])
def test_a_lost_page_tears_the_guest(machine: Make, engine: str, tmp_path: Path) -> None:
    """The control: one harvested page is dropped."""
    made = machine(engine)
    check_all(made)
    with ChainWriter(tmp_path / "c", b"", False) as chain:
        session = Session(VmTarget(made.vm, made.tracker, "check"), chain)
        session.take()
        run_on(made.vm, 0, 300)
        with broken("forget"):
            session.take()
        run_on(made.vm, 0, 1)
        session.take()
    chain_ = Chain(tmp_path / "c")
    view = chain_.view(1, chain_.verify(b""))
    ram, vm = load_vm(view, lambda ram, vcpus: Vm(ram, vcpus, list_rows=8192))
    with ram, vm:
        vm.resume()
        run_on(vm, 0, 2 * PACE)
        assert b"T" in printed(vm)


@pytest.mark.parametrize(
    "rounds", [pytest.param(20, id="20"), pytest.param(1500, id="1500", marks=pytest.mark.slow)]
)
def test_rollback_is_whole(machine: Make, vm_engine: str, rounds: int, tmp_path: Path) -> None:
    """Byte by byte and register by register, at random instants; then the structure is whole."""
    made, rng = machine(vm_engine, 2), random.Random(2)
    check_all(made)
    with ChainWriter(tmp_path / "c", b"", False) as chain:
        target = VmTarget(made.vm, made.tracker, "check")
        session = Session(target, chain)
        for _ in range(5):
            session.take()
            run_on(made.vm, 0, rng.randrange(300))
    chain_ = Chain(tmp_path / "c")
    files = chain_.verify(b"")
    views = [chain_.view(epoch, files) for epoch in range(5)]
    for _ in range(rounds):
        view = rng.choice(views)
        made.vm.pause()
        target.rollback(view)
        ram, system = np.zeros_like(made.ram.pages()), np.zeros_like(made.vm.system_state)
        read_memory(view, made.vm, ram, system)
        assert (made.ram.pages() == ram).all() and (made.vm.system_state == system).all()
        states = zip(made.vm.vcpus, vcpu_states(view.epoch), strict=True)
        assert all(vcpu.state().same(state) for vcpu, state in states)
        made.vm.resume()
        made.tracker.exchange()
        run_on(made.vm, rng.randrange(2), rng.randrange(20))
    assert b"T" not in made.vm.serial()
    for vcpu in range(2):
        run_on(made.vm, vcpu, 2 * PACE)
        stop(made.vm, vcpu)
        assert wait(made.vm, vcpu, DEADLINE)
    assert b"T" not in made.vm.serial()


def test_rollback_refuses_another_machine(machine: Make, tmp_path: Path) -> None:
    one, two = machine("kvm-bitmap", 2), machine("kvm-bitmap", 1)
    check_all(one)
    with ChainWriter(tmp_path / "c", b"", False) as chain:
        Session(VmTarget(one.vm, one.tracker, "check"), chain).take()
    view = Chain(tmp_path / "c").view(0)
    before = two.ram.array.copy()
    with pytest.raises(RollbackRefusedError, match="other vCPUs"):
        VmTarget(two.vm, two.tracker, "check").rollback(view)
    assert (before == two.ram.array).all()


def test_serial_output_goes_on(uffdtrack: Run, kvm: None, tmp_path: Path) -> None:
    """From the command line: run, kill nobody, resume any epoch in a fresh process."""
    for until in (25, 100, 1000, 10_000):  # as long as it takes on this host to have some epochs
        out = tmp_path / f"c{until}"
        options = ("--until", until, "--every", "5ms", "--engine", "kvm-clear")
        done = uffdtrack("vm", "run", "count", "-o", out, *options)
        assert done.stdout == "".join(f"{n}\n" for n in range(1, until + 1))
        epochs = Chain(out).epochs
        if len(epochs) > 5:
            break
    assert len(epochs) > 5
    for epoch in (epochs[0], epochs[len(epochs) // 2]):
        text = uffdtrack("vm", "resume", f"{out}@{epoch}", "--engine", "scan").stdout
        # An epoch may fall into the middle of a number.
        numbers = text.splitlines()[1:]
        assert numbers and numbers[-1] == str(until)
        assert numbers == [str(n) for n in range(int(numbers[0]), until + 1)]
    uffdtrack("verify", out)
    shown = uffdtrack("show", f"{out}@1").stdout
    assert "[ram0]" in shown and "vm count" in shown
    assert "vm resume" in uffdtrack("rollback", os.getpid(), f"{out}@1", code=5).stderr
    uffdtrack("export", f"{out}@2", "-o", tmp_path / "core")


def test_verbs_refuse(uffdtrack: Run, kvm: None, spawn: Callable[..., object], tmp_path: Path) -> None:
    process = spawn("sleep", "60")
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "p", "--count", 1)  # type: ignore[attr-defined]
    assert "not of a VM" in uffdtrack("vm", "resume", tmp_path / "p", code=2).stderr
    uffdtrack("vm", "run", "dance", code=2)
    uffdtrack("vm", "run", "count", "--ram", "8k", code=2)
    failed = uffdtrack("vm", "run", "count", "--ram", "1X", code=2).stderr
    assert "'--ram'" in failed and "vm run --help" in failed
    uffdtrack("vm", "run", "count", "--count", 3, code=2)
    uffdtrack("vm", "run", "count", "-o", tmp_path / "c", "--engine", "scan", "--max-dirty", 5, code=2)
    uffdtrack("vm", "run", "count", "-o", tmp_path / "c", "--max-dirty", 5, code=2)
    assert not (tmp_path / "c" / "epoch-00000000.core").exists()


def test_an_epoch_is_a_core(machine: Make, tmp_path: Path) -> None:
    made = machine("kvm-bitmap", 2)
    check_all(made)
    with ChainWriter(tmp_path / "c", b"", False) as chain:
        Session(VmTarget(made.vm, made.tracker, "check"), chain).take()
    path = tmp_path / "c" / "epoch-00000000.core"
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        kinds = [n["n_type"] for s in elf.iter_segments("PT_NOTE") for n in s.iter_notes()]
        assert kinds.count("NT_PRSTATUS") == 2
    file = EpochFile(path)
    registers = [int.from_bytes(t.regs[128:136], "little") for t in file.threads]
    assert registers == [state.registers["rip"] for state in vcpu_states(file)]
    file.notes = [n for n in file.notes if n[1] != 0x75660009]
    with pytest.raises(ImageError, match="vCPUs"):
        vcpu_states(file)


def test_memory_is_that_of_the_stop(machine: Make, vm_engine: str, tmp_path: Path) -> None:
    """Byte by byte: each epoch against a copy that was made while the VM stood."""
    made = machine(vm_engine, 2)
    check_all(made)
    copies = []
    with ChainWriter(tmp_path / "c", b"", False) as chain:
        target = VmTarget(made.vm, made.tracker, "check")
        session = Session(target, chain)
        session.take()
        for _ in range(6):
            run_on(made.vm, 1, 40)
            made.vm.pause()
            copies.append((made.ram.pages().copy(), [v.state() for v in made.vm.vcpus]))
            session.take()  # it stands already, so the instant is the same one
    chain_ = Chain(tmp_path / "c")
    files = chain_.verify(b"")
    for epoch, (ram, states) in enumerate(copies, 1):
        view = chain_.view(epoch, files)
        pages = np.arange(len(ram), dtype=np.uint64)
        held = np.isin(pages, view.pages)
        assert (view.read(pages[held]) == ram[held]).all() and not ram[~held].any()
        assert all(a.same(b) for a, b in zip(vcpu_states(files[epoch]), states, strict=True))
    assert rings_for(vm_engine, 2) in (0, 4096)


def test_the_verdict_of_check(kvm: None, uffdtrack: Run, capsys: pytest.CaptureFixture[str]) -> None:
    looked = "1 look of the guest at what 5000000 operations have made: nothing torn"
    done = uffdtrack("vm", "run", "check", "--until", 5_000_000)
    assert looked in done.stderr and len(done.stdout.splitlines()) == 1
    vcpu = SimpleNamespace(mailbox=SimpleNamespace(written=5_000_000, pace=5_000_000), exit=None)
    vm: Any = SimpleNamespace(vcpus=[vcpu])
    tell_verdict(vm, "check")
    assert looked in capsys.readouterr().err
    vcpu.exit = VcpuExit("exit", 1)  # it has found its structure torn
    tell_verdict(vm, "check")
    assert not capsys.readouterr().err
