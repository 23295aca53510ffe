"""Output that is held: what leaves, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoint.cli.replicate import ReplicationError
from checkpoint.cli.replicate_vm import Patience, let_out
from checkpoint.cli.vm import is_full
from checkpoint.replication.held import HeldOutput
from kvmglue import Order, Outbox, Vm, open_serial, open_tracker, post, wait
from tests.helpers import DEADLINE
from tests.kvm.conftest import kvm
from uffdtrack import GuestRam, PauseTimeoutError

assert kvm  # a fixture


@pytest.fixture
def counted(kvm: None, tmp_path: Path) -> Iterator[tuple[Vm, Outbox]]:
    """A guest that has printed the numbers from 1 to 20."""
    with GuestRam(64 * 4096, shared=False) as ram, Vm(ram) as vm:
        with Outbox(vm, open_serial(tmp_path / "serial")) as outbox:
            post(vm, 0, Order("count", first=0, pages=16, n=20))
            vm.resume()
            assert wait(vm, 0, DEADLINE)
            outbox.collect()
            yield vm, outbox


TEXT = b"".join(b"%d\n" % n for n in range(1, 21))


def test_what_is_acknowledged_leaves(counted: tuple[Vm, Outbox], tmp_path: Path) -> None:
    held = HeldOutput(counted[1])
    held.release()
    assert (tmp_path / "serial").read_bytes() == b""
    for upto in (5, 5, 17, len(TEXT)):
        held.acknowledged((upto, 0))
        assert (tmp_path / "serial").read_bytes() == TEXT[:upto] and held.is_all_out


@pytest.mark.parametrize("by", ["stopped", "not allowed"])
def test_nothing_leaves(by: str, counted: tuple[Vm, Outbox], tmp_path: Path) -> None:
    held = HeldOutput(counted[1])
    held.acknowledged((4, 0))
    if by == "stopped":
        held.stop()
    else:
        held.may_release = lambda: False
    held.acknowledged((len(TEXT), 0))
    held.release()
    assert (tmp_path / "serial").read_bytes() == TEXT[:4] and not held.is_all_out


def test_a_backend_that_fails(
    counted: tuple[Vm, Outbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has not taken is held, and leaves when it takes it again."""
    held, serial = HeldOutput(counted[1]), counted[1].serial
    write: Callable[[int, bytes], int] = serial.write  # type: ignore[union-attr]

    def full(at: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serial, "write", full)
    held.acknowledged((len(TEXT), 0))
    held.release()
    assert "No space left" in held.error and not held.is_all_out
    monkeypatch.setattr(serial, "write", write)
    held.release()
    assert (tmp_path / "serial").read_bytes() == TEXT and not held.error


def test_what_nobody_else_can_run_on_from_leaves_at_once(counted: tuple[Vm, Outbox], tmp_path: Path) -> None:
    """It is behind what epochs have; one that is taken back then has what has not left."""
    vm, outbox = counted
    held = HeldOutput(outbox)
    held.may_release = lambda: False
    assert not held.release(everything=True) and held.released == (0, 0)
    held.may_release = lambda: True
    assert held.release(everything=True) and held.is_all_out
    assert (tmp_path / "serial").read_bytes() == TEXT
    outbox.take_back((3, 0))
    assert outbox.collected == (len(TEXT), 0), "what was released is not taken back"
    post(vm, 0, Order("count", first=0, pages=16, n=1))
    assert wait(vm, 0, DEADLINE)
    assert held.release() and (tmp_path / "serial").read_bytes() == TEXT, "it is held again"
    held.stop()
    assert not held.release(everything=True)


@pytest.mark.parametrize("fails", [3, 10**9])
def test_vcpus_that_do_not_stop_in_time(
    fails: int, counted: tuple[Vm, Outbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy host: it is tried again while there is patience, since the guest ends with its session."""
    vm, outbox = counted
    stop, tries = vm.pause, 0

    def pause() -> None:
        nonlocal tries
        tries += 1
        if tries <= fails:
            raise PauseTimeoutError("vCPUs [0] did not stop in time; all run on", (0,))
        stop()

    monkeypatch.setattr(vm, "pause", pause)
    interrupt: Any = SimpleNamespace(seen=lambda: False, rest=lambda seconds: None, woken=lambda: False)
    patience = Patience(interrupt)
    patience.limit(DEADLINE if fails == 3 else 0.0)
    if fails == 3:
        let_out(vm, HeldOutput(outbox), patience)
    else:
        with pytest.raises(ReplicationError, match="did not stop in time"):
            let_out(vm, HeldOutput(outbox), patience)
    assert (tmp_path / "serial").read_bytes() == (TEXT if fails == 3 else b"")


def test_limit_for_which_a_vcpu_does_not_stop_in_time(counted: tuple[Vm, Outbox]) -> None:
    """It is no reason to end: the guest would end with its session. The next window tries again."""
    vm, _ = counted
    tracker = open_tracker(vm, "kvm-bitmap")

    def late(seconds: float) -> bool:
        raise PauseTimeoutError("vCPUs [0] did not stop in time; all run on", (0,))

    setattr(tracker, "wait_full", late)  # noqa: B010
    assert is_full(tracker, 1.0)
