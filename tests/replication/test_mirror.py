"""What a standby has is what the guest has: compared byte by byte after each epoch that was acknowledged."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.chain import Chain, epoch_name
from checkpoint.chain_writer import ChainWriter
from checkpoint.errors import ImageError
from checkpoint.image import EpochFile
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.mirror import Mirror
from checkpoint.replication.standby import StandbyEdge
from checkpoint.session import Session
from checkpoint.targets.vm import VmTarget
from kvmglue import KvmTracker, Vm, bind_vcpus, open_tracker, rings_for
from tests.kvm.conftest import PAGES, Machine, kvm, write
from tests.replication.pair import active, standby, take, until
from uffdtrack import GuestRam

assert kvm  # a fixture

ENGINES = ["kvm-clear", "kvm-ring", "kvm-bitmap", "scan", "sync"]


@pytest.fixture
def guest(kvm: None) -> Iterator[Callable[[str], Machine]]:
    """Build VMs, each with an active tracker."""
    with ExitStack() as stack:

        def build(engine: str) -> Machine:
            ram = stack.enter_context(GuestRam(PAGES * 4096, shared=False))
            vm = stack.enter_context(Vm(ram, ring_entries=rings_for(engine, 1)))
            tracker = open_tracker(vm, engine)
            stack.callback(tracker.close)
            tracker.activate()
            if isinstance(tracker, KvmTracker):
                tracker.leave_hot()
            bind_vcpus(tracker, vm)
            return Machine(ram, vm, tracker)

        yield build


def begin(edge: ActiveEdge, there: Machine) -> tuple[Session, VmTarget]:
    target = VmTarget(there.vm, there.tracker, "write")
    target.stands = True  # from each window on, so that there is one state to compare with
    return Session(target, edge.sink.images, sink=edge.sink), target


def differing(edge: StandbyEdge, there: Machine) -> list[int]:
    """Rows of the RAM that differ; of what else differs -1."""
    mirror = edge.replica.mirror
    assert mirror
    states = [vcpu.state() for vcpu in there.vm.vcpus]
    same = all(one.same(other) for one, other in zip(states, mirror.states, strict=True))
    if not same or (mirror.vm.system_state != there.vm.system_state).any():
        return [-1]
    return np.flatnonzero((mirror.ram.pages() != there.ram.pages()).any(axis=1)).tolist()


def write_at_random(there: Machine, chance: random.Random, turn: int) -> None:
    """Values repeat, and pages become zero, so that there are deltas and pages that did not change."""
    write(there, 0, PAGES, chance.choice([0, turn % 3]), "random", chance.choice([1, 7, 300]))


@pytest.mark.parametrize("engine", ENGINES)
def test_each_epoch(engine: str, guest: Callable[[str], Machine], tmp_path: Path) -> None:
    there, chance = guest(engine), random.Random(1)
    with standby(tmp_path / "s", tmp_path / "chain") as far, active(tmp_path / "s") as edge:
        session, _ = begin(edge, there)
        for turn in range(12):
            write_at_random(there, chance, turn)
            row = take(session)
            assert row.base == (turn == 0)
            assert differing(far, there) == []
        far.replica.store.drain()
        assert [file.epoch for file in Chain(tmp_path / "chain").verify(b"")] == list(range(12))


def test_link_that_breaks(guest: Callable[[str], Machine], tmp_path: Path) -> None:
    """Whatever was on its way, the next epoch that is acknowledged has it, and it needs no base."""
    there, chance = guest("kvm-ring"), random.Random(2)
    bases = 0
    with standby(tmp_path / "s", tmp_path / "chain") as far, active(tmp_path / "s") as edge:
        session, _ = begin(edge, there)
        for turn in range(25):
            write_at_random(there, chance, turn)
            if chance.random() < 0.5:
                cut(edge if chance.random() < 0.5 else far)
            bases += take(session).base
            assert differing(far, there) == []
    assert bases == 1


def cut(edge: ActiveEdge | StandbyEdge) -> None:
    """End a link in its thread, whatever it does just then."""

    def close() -> None:
        if edge._channel:
            edge.spawn(edge._channel.close())

    edge.loop.call_soon_threadsafe(close)


def test_standby_that_is_another_one(guest: Callable[[str], Machine], tmp_path: Path) -> None:
    """One that has nothing gets a base; one that had an epoch follows no other active."""
    there = guest("kvm-ring")
    with active(tmp_path / "s") as edge:
        session, _ = begin(edge, there)
        for directory in ("one", "two"):
            with standby(tmp_path / "s", tmp_path / directory) as far:
                for turn in range(3):
                    write(there, turn, 100, turn + 1)
                    assert take(session).base == (turn == 0)
                    assert differing(far, there) == []
                with active(tmp_path / "s") as foreign:
                    until(lambda there=foreign: "another run" in there.why, "it was not refused")
                write(there, 9, 1, 9)
                assert not take(session).base
                assert differing(far, there) == []
            Chain(tmp_path / directory).verify(b"")


def test_mirror_that_lacks_a_page(
    guest: Callable[[str], Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the comparison sees one page."""
    there, whole = guest("kvm-ring"), Mirror._write

    def lacking(mirror: Mirror, pages: Any, data: Any, places: Any) -> None:
        whole(mirror, pages[pages != 7], data, places[pages != 7])

    with standby(tmp_path / "s", tmp_path / "chain") as far, active(tmp_path / "s") as edge:
        session, _ = begin(edge, there)
        take(session)
        monkeypatch.setattr(Mirror, "_write", lacking)
        write(there, 6, 3, 3)
        take(session)
        assert differing(far, there) == [7]


def test_image_that_cannot_be_read(
    guest: Callable[[str], Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has deltas and whole pages; whichever time it cannot be opened, all is merged, or nothing is."""
    there, chain = guest("kvm-ring"), ChainWriter(tmp_path, b"", force=True)
    session = Session(VmTarget(there.vm, there.tracker, "write"), chain)
    for first, value in ((0, 1), (0, 2), (50, 3)):
        write(there, first, 100, value)
        session.take()
    chain.close()
    base, second, third = (EpochFile(tmp_path / epoch_name(number)) for number in range(3))
    assert third.deltas and (third.offsets >= 0).any()
    whole, left = EpochFile.open, 0

    def failing(file: EpochFile) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ImageError("too many open files")
        return whole(file)

    with Mirror(base) as mirror:
        mirror.merge(second)
        before = mirror.ram.array.tobytes(), mirror.vm.system_state.tobytes()
        monkeypatch.setattr(EpochFile, "open", failing)
        for may in range(9):
            left = may
            try:
                mirror.merge(third)
                break
            except ImageError:
                assert (mirror.ram.array.tobytes(), mirror.vm.system_state.tobytes()) == before
        assert may > 0 and (mirror.ram.pages()[50:150].max(axis=1) == 3).all()


@pytest.mark.parametrize("where", ["ram", "system"])
def test_deltas_that_do_not_fit(where: str, guest: Callable[[str], Machine], tmp_path: Path) -> None:
    """Memory that is not what the deltas were made of stays as it was; what fits is merged then."""
    there, chain = guest("kvm-ring"), ChainWriter(tmp_path, b"", force=True)
    session = Session(VmTarget(there.vm, there.tracker, "write"), chain)
    for value in range(1, 4):
        write(there, 0, 200, value)
        session.take()
    chain.close()
    base, second, third = (EpochFile(tmp_path / epoch_name(number)) for number in range(3))
    assert third.deltas and {0, 199} < set(third.deltas.pages.tolist())
    with Mirror(base) as mirror:
        mirror.merge(second)
        memory, at = mirror.ram.array, 150
        if where == "system":
            assert third.deltas.pages.max() * 4096 >= mirror.vm.system_address
            memory, at = (
                mirror.vm.system_state,
                int(third.deltas.pages.max() - mirror.vm.system_address // 4096),
            )
        memory.reshape(-1)[at * 4096 + 4000] ^= 255
        before = mirror.ram.array.tobytes(), mirror.vm.system_state.tobytes()
        with pytest.raises(ImageError, match="delta to other contents"):
            mirror.merge(third)
        assert (mirror.ram.array.tobytes(), mirror.vm.system_state.tobytes()) == before
        memory.reshape(-1)[at * 4096 + 4000] ^= 255
        mirror.merge(third)
        assert mirror.ram.array.tobytes() != before[0]
        assert (mirror.ram.pages()[:200].max(axis=1) == 3).all()
