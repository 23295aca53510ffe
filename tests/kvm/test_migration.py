"""A guest moves to another process, and goes on there; without the forced pause a busy one does not."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import pytest

from checkpoint.migrate import Link, MigrationError, MigrationRow, migrate, receive
from kvmglue import Order, Vm, post, written
from tests.helpers import DEADLINE
from tests.kvm.conftest import PAGES, Machine
from tests.processes import CONTEXT
from uffdtrack.errors import UffdtrackError

Make = Callable[..., Machine]
RATE = 200e6
PACE = 2000


def _standby(connection: socket.socket, pipe: Connection) -> None:
    """Takes the guest in, runs it until it has checked itself some times, says what it printed."""
    try:
        ram, vm = receive(Link(connection), lambda ram, vcpus: Vm(ram, vcpus, list_rows=8192))
    except UffdtrackError as error:
        pipe.send(str(error))
        return
    with ram, vm:
        began = written(vm, 0)
        vm.resume()
        deadline = time.monotonic() + DEADLINE
        while written(vm, 0) < began + 3 * PACE and time.monotonic() < deadline:
            vm.check()
        text = b""
        while not text.endswith(b"\n") and time.monotonic() < deadline:
            vm.wait_event(0.1)
            text += vm.serial()
        pipe.send((began, text))


@contextmanager
def standby() -> Iterator[tuple[Link, Connection]]:
    ours, theirs = socket.socketpair()
    pipe, other = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_standby, args=(theirs, other))
    process.start()
    theirs.close()
    try:
        yield Link(ours, RATE), pipe
    finally:
        ours.close()
        process.join(DEADLINE)
        assert process.exitcode == 0


def busy(machine: Make, engine: str, limit: int | None) -> Machine:
    """Changes a structure that tears, in all of its RAM, much faster than the link carries it."""
    made = machine(engine, 1, limit=limit)
    made.vm.resume()
    post(made.vm, 0, Order("check", pages=PAGES, pace=PACE))
    deadline = time.monotonic() + DEADLINE
    while written(made.vm, 0) < 100:
        assert time.monotonic() < deadline
        if limit and made.tracker.wait_full(0.01):
            made.tracker.exchange()
            made.tracker.resume()
    return made


@pytest.mark.parametrize("engine", ["kvm-ring", "sync"])
def test_the_forced_pause_makes_it_converge(machine: Make, engine: str) -> None:
    limit = 256
    made = busy(machine, engine, limit)
    with standby() as (link, pipe):
        rows = migrate(made.vm, made.tracker, link, downtime=limit * 4096 / RATE)
        for row in rows[:-1]:
            assert row.left <= limit * 4096, "more is left than the bound that was set"
        here = written(made.vm, 0)
        assert pipe.poll(DEADLINE)
        began, text = pipe.recv()
    assert began == here == written(made.vm, 0), "it goes on there, from where it stands here"
    assert text and b"T" not in text
    assert int(text.split()[-1]) > began


@pytest.mark.parametrize("engine", ["kvm-bitmap", "kvm-clear", "kvm-ring", "scan"])
def test_plain_precopy_does_not_converge(machine: Make, engine: str) -> None:
    made = busy(machine, engine, None)

    def dirtied(row: object) -> None:
        """In the next round the guest gets on, however busy this machine is."""
        was, deadline = written(made.vm, 0), time.monotonic() + DEADLINE
        while written(made.vm, 0) < was + PAGES:
            assert time.monotonic() < deadline

    with standby() as (link, pipe):
        send, sent = link.send, []

        def slow(*message: object) -> None:
            sent.append(message[0])
            if len(sent) == 2:  # the first memory: the guest gets on in the first round, too
                dirtied(None)
            send(*message)  # type: ignore[arg-type]

        link.send = slow  # type: ignore[method-assign]
        with pytest.raises(MigrationError, match="not converged"):
            downtime = 256 * 4096 / RATE
            migrate(made.vm, made.tracker, link, downtime, max_rounds=6, emit=dirtied)
        assert pipe.poll(DEADLINE)
        assert "given up" in pipe.recv()
    was, deadline = written(made.vm, 0), time.monotonic() + DEADLINE
    while written(made.vm, 0) <= was + PACE:
        assert time.monotonic() < deadline, "it runs on here"
    assert b"T" not in made.vm.serial()


@pytest.mark.parametrize("engine", ["kvm-bitmap", "kvm-clear", "kvm-ring", "scan", "sync"])
def test_an_idle_guest_moves_over_every_tracker(machine: Make, engine: str) -> None:
    made = machine(engine, 1)
    made.vm.resume()
    post(made.vm, 0, Order("check", pages=20, pace=PACE))
    with standby() as (link, pipe):
        migrate(made.vm, made.tracker, link, downtime=0.01)
        assert pipe.poll(DEADLINE)
        _, text = pipe.recv()
    assert text and b"T" not in text


def test_the_guest_that_has_moved_stands_here(machine: Make) -> None:
    """Whatever goes wrong then: it runs at one end alone."""
    made = machine("kvm-ring", 1)
    made.vm.resume()
    post(made.vm, 0, Order("check", pages=20, pace=PACE))

    def emit(row: MigrationRow) -> None:
        if row.downtime_us is not None:
            raise BrokenPipeError("nobody reads the rows")

    with standby() as (link, pipe):
        with pytest.raises(BrokenPipeError):
            migrate(made.vm, made.tracker, link, downtime=0.01, emit=emit)
        here = written(made.vm, 0)
        assert pipe.poll(DEADLINE)
        began, text = pipe.recv()
    assert text and b"T" not in text
    assert began == here == written(made.vm, 0)


def test_the_other_end_goes(machine: Make) -> None:
    made = busy(machine, "kvm-ring", 256)
    ours, theirs = socket.socketpair()
    theirs.close()
    assert made.tracker.wait_full(DEADLINE)  # so it stands
    before = written(made.vm, 0)
    with pytest.raises(MigrationError, match="runs on here"):
        migrate(made.vm, made.tracker, Link(ours), downtime=1.0)
    ours.close()
    # Up to the next time that it is full, which may have come already.
    deadline = time.monotonic() + DEADLINE
    while written(made.vm, 0) == before:
        assert time.monotonic() < deadline
