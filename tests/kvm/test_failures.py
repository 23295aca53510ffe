"""What fails in a window, a migration, an activation: nothing is lost, and the guest runs on."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint import session as sessions
from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.epoch import EpochRow
from checkpoint.migrate import Link, MigrationError, migrate
from checkpoint.schedule import ATTEMPTS, Schedule, run_session
from checkpoint.session import Session
from checkpoint.targets.vm import VmTarget
from checkpoint.targets.vm_state import load_vm
from kvmglue import Order, Vm, open_tracker, post, wait, written
from tests.helpers import DEADLINE, Run
from tests.kvm.conftest import Machine
from uffdtrack.errors import CycleError, TargetBusyError, TrackerError, UnsupportedError

Make = Callable[..., Machine]


def write(made: Machine, rows: range, value: int) -> None:
    post(made.vm, 0, Order("write", rows=rows, value=value))
    assert wait(made.vm, 0, DEADLINE)


def image(directory: Path, rows: int) -> Any:
    chain = Chain(directory)
    view = chain.view(None, chain.verify(b""))
    pages = np.arange(rows, dtype=np.uint64)
    out = np.zeros((rows, 4096), np.uint8)
    held = np.isin(pages, view.pages)
    out[held] = view.read(pages[held])
    return out


@pytest.mark.parametrize("what", ["state", "stop"])
def test_a_window_that_fails_loses_nothing(
    machine: Make, vm_engine: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = machine(vm_engine, limit={"sync": 300, "kvm-ring": 512}.get(vm_engine))
    made.vm.resume()
    with ChainWriter(tmp_path / "c", b"", False) as chain:
        session = Session(VmTarget(made.vm, made.tracker, "write"), chain)
        session.take()
        write(made, range(200), 7)
        with monkeypatch.context() as broken:
            if what == "state":

                def fails() -> None:
                    raise UnsupportedError("on purpose")

                broken.setattr(made.vm.vcpus[0], "state", fails)
                with pytest.raises(UnsupportedError):
                    session.take()
            else:

                def late() -> None:
                    made.vm.gate.check(-errno.ETIMEDOUT, "stop the vCPUs")

                broken.setattr(made.vm, "pause", late)
                with pytest.raises(TargetBusyError):
                    session.take()
        write(made, range(150, 250), 8)
        made.vm.pause()
        now = made.ram.pages().copy()
        session.take()
    assert (image(tmp_path / "c", len(now)) == now).all()


@pytest.mark.parametrize("when", ["the base", "later"])
def test_a_vcpu_that_is_late_again_and_again(
    when: str, machine: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest would end with its session: epochs are skipped until it stops in time."""
    made = machine("kvm-bitmap")
    made.vm.resume()
    late = iter([when == "later", *[False] * 2 * ATTEMPTS])
    pause, said, rows = made.vm.pause, list[str](), list[EpochRow]()

    def pause_late() -> None:
        if not next(late, True):
            made.vm.gate.check(-errno.ETIMEDOUT, "stop the vCPUs")
        pause()

    monkeypatch.setattr(made.vm, "pause", pause_late)
    monkeypatch.setattr(sessions, "PATIENCE", 0)
    with ChainWriter(tmp_path / "c", b"", False) as chain:
        session = Session(VmTarget(made.vm, made.tracker, "write"), chain)
        run_session(session, Schedule(0.01, 3, None), lambda seconds: False, rows.append, said.append)
    assert [row.epoch for row in rows] == [0, 1, 2]
    assert sum(row.skipped for row in rows) == 2 * ATTEMPTS + (when == "the base")
    assert "vCPUs to stop in time" in said[0]


def test_a_second_base_is_whole(machine: Make, tmp_path: Path) -> None:
    """Another session on the same target: its base holds the program and the page tables, too."""
    made = machine("kvm-bitmap")
    made.vm.resume()
    post(made.vm, 0, Order("check", pages=100, pace=500))
    target = VmTarget(made.vm, made.tracker, "check")
    for name in ("a", "b"):
        with ChainWriter(tmp_path / name, b"", False) as chain:
            Session(target, chain).take()
    chain_ = Chain(tmp_path / "b")
    ram, vm = load_vm(chain_.view(0, chain_.verify(b"")), lambda r, n: Vm(r, n, list_rows=8192))
    with ram, vm:
        was, deadline = written(vm, 0), time.monotonic() + DEADLINE
        vm.resume()
        while written(vm, 0) < was + 1000:
            vm.check()
            assert time.monotonic() < deadline


def test_a_compacted_chain_resumes(uffdtrack: Run, kvm: None, tmp_path: Path) -> None:
    out = tmp_path / "c"
    uffdtrack("vm", "run", "count", "-o", out, "--every", "5ms", "--count", 6)
    for before in (3, 5):
        uffdtrack("compact", out, "--before", before)
        uffdtrack("verify", out)
        uffdtrack("vm", "resume", f"{out}@{before}", "--duration", "200ms")


def test_activation_on_a_vm_that_runs(machine: Make) -> None:
    made = machine("kvm-ring", 3, rings=256)
    made.vm.resume()
    for vcpu in range(3):
        post(made.vm, vcpu, Order("storm", rows=range(vcpu, 2000, 3)))
    made.tracker.close()
    for _ in range(40):
        with open_tracker(made.vm, "kvm-ring") as tracker:
            made.vm.resume()
            tracker.exchange()
        made.vm.check()


def test_a_pause_is_kept_beside_an_exchange(machine: Make) -> None:
    made = machine("kvm-ring", 2)
    made.vm.resume()
    for vcpu in range(2):
        post(made.vm, vcpu, Order("storm", rows=range(vcpu, 2000, 2)))
    done = threading.Event()

    def exchanges() -> None:
        while not done.is_set():
            made.tracker.exchange()
            made.tracker.pending()

    thread = threading.Thread(target=exchanges)
    thread.start()
    try:
        for _ in range(100):
            made.vm.pause()
            before = made.ram.array.copy()
            assert all(vcpu.state().registers["rip"] for vcpu in made.vm.vcpus)
            assert (before == made.ram.array).all(), "it ran in the pause"
            made.vm.resume()
    finally:
        done.set()
        thread.join(DEADLINE)
    assert not thread.is_alive()


@pytest.mark.parametrize("engine", ["kvm-ring", "sync"])
def test_the_other_end_dies_in_the_last_phase(machine: Make, engine: str) -> None:
    made = machine(engine, limit=300)
    made.vm.resume()
    post(made.vm, 0, Order("check", pages=20, pace=500))
    ours, theirs = socket.socketpair()

    def swallow() -> None:
        link = Link(theirs)
        while link.receive()[0] != b"s":
            pass
        theirs.close()

    thread = threading.Thread(target=swallow)
    thread.start()
    with pytest.raises(MigrationError, match="runs on here"):
        migrate(made.vm, made.tracker, Link(ours), downtime=1.0)
    thread.join(DEADLINE)
    ours.close()
    was, deadline = written(made.vm, 0), time.monotonic() + DEADLINE
    while written(made.vm, 0) < was + 1000:
        assert time.monotonic() < deadline, "it stands"
        if made.tracker.wait_full(0):
            made.tracker.exchange()
            made.tracker.resume()


def test_a_vm_closes_its_trackers(machine: Make, vm_engine: str) -> None:
    made = machine(vm_engine)
    made.vm.resume()
    write(made, range(10), 1)
    made.vm.close()
    for call in (made.tracker.exchange, made.tracker.pending, made.tracker.pause):
        with pytest.raises(CycleError):
            call()
    for closed in (made.vm.pause, made.vm.serial, lambda: made.vm.vcpus[0].exit):
        with pytest.raises(TrackerError, match="closed"):
            closed()
    made.ram.host_write(0, b"x")
    made.vm.close()
