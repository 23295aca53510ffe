"""Who comes and goes at the wrong moment: close in a call, joiners that fail, places that are taken."""

from __future__ import annotations

import gc
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.contract.combinations import CONFIGS, OWN, PAGES, PAUSING, TRAITS, Config, on, with_limits
from tests.contract.conftest import Guest, until_gone
from tests.contract.guests import DEADLINE, STORM, ProcessVcpu
from tests.processes import CONTEXT
from uffdtrack import GuestRam, Vcpu, join, open_tracker
from uffdtrack.errors import CycleError
from uffdtrack.joining import address_of

pytestmark = pytest.mark.usefixtures("kernel")


CALLS = {"wait_full": PAUSING, "exchange": TRAITS, "pending": TRAITS, "pause": OWN, "host": TRAITS}
"""A call that may be under way when a tracker is closed, and its trackers. The gate of a VM is the VM's."""


@pytest.mark.parametrize(
    ("call", "engine"),
    [(call, engine) for call, engines in CALLS.items() for engine in engines],
    indirect=["engine"],
)
def test_close_while_another_thread_is_in_a_call(make: Callable[..., Guest], engine: str, call: str) -> None:
    """The call ends, with a clear error or none; nobody touches what was freed."""
    for _ in range(3):
        guest = make(engine, CONFIGS[1], 2000 if call == "wait_full" else None)
        began, errors = threading.Event(), []
        calls = {
            "wait_full": partial(guest.tracker.wait_full, DEADLINE),
            "exchange": guest.tracker.exchange,
            "pending": guest.tracker.pending,
            "pause": guest.tracker.pause,
        }

        def caller(
            what: Callable[[], object], began: threading.Event = began, errors: list[object] = errors
        ) -> None:
            try:
                while True:
                    began.set()
                    what()
            except CycleError:
                pass
            except BaseException as error:
                errors.append(error)

        if call != "host":
            thread = threading.Thread(target=caller, args=(calls[call],))
            thread.start()
            assert began.wait(DEADLINE)
            for vcpu in guest.vcpus:
                vcpu.post(STORM, range(50), 5)
            guest.tracker.close()
            thread.join(DEADLINE)
            assert not thread.is_alive() and not errors
            for vcpu in guest.vcpus:
                vcpu.end()
        else:
            stop = threading.Thread(target=guest.tracker.close)
            stop.start()
            for _ in range(100):
                guest.ram.host_write(0, b"x" * 9000)
            stop.join(DEADLINE)
            assert not stop.is_alive()


def test_of_two_threads_that_rearm_one_is_told(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[1])
    guest.tracker.exchange()
    for value in range(40):
        guest.write(0, list(range(0, 2000, 2)), value)
        n = guest.tracker.prepare()
        pages, told, gate = guest.tracker.fetch(), [], threading.Barrier(2)
        assert len(pages) == n

        def rearm(told: list[str] = told, gate: threading.Barrier = gate, pages: object = pages) -> None:
            gate.wait(DEADLINE)
            try:
                guest.tracker.rearm(pages)
                told.append("done")
            except CycleError:
                told.append("told")

        threads = [threading.Thread(target=rearm) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert sorted(told) == ["done", "told"]
        guest.copy(pages)
        assert not guest.stale()


def _joins_in_a_thread_that_ends(name: str, pipe: Connection) -> None:
    kept: list[Vcpu] = []
    thread = threading.Thread(target=lambda: kept.append(join(name, 0)))
    thread.start()
    thread.join()
    pipe.send("joined")
    pipe.recv()
    os._exit(0)


@on(OWN)
def test_a_place_that_was_taken_anew(engine: str, library_path: Path) -> None:
    """The end of the process that had it before is nothing to the one that has it now."""
    with GuestRam("8MiB") as ram, open_tracker(ram, engine, vcpus=1) as tracker:
        ram.pages()[:, 0] = 1
        ours, theirs = CONTEXT.Pipe()
        old = CONTEXT.Process(target=_joins_in_a_thread_that_ends, args=(ram.name, theirs))
        old.start()
        assert ours.poll(DEADLINE) and ours.recv() == "joined"
        assert until_gone(tracker) == (0,)
        vcpu = ProcessVcpu(library_path, ram, 0)
        tracker.exchange()
        ours.send("end")
        old.join(DEADLINE)
        assert old.exitcode == 0
        # Another that joins and leaves: by then the end of the old one was dealt with.
        for value in range(3):
            vcpu.post(0, [5, 6], value)
            assert vcpu.wait()
            assert {5, 6} <= set(tracker.exchange().gfn.tolist())
            tracker.pause()
            tracker.resume()
        vcpu.end()


@on(OWN)
def test_rubbish_on_the_socket(engine: str, library_path: Path) -> None:
    with GuestRam("1MiB") as ram, open_tracker(ram, engine, vcpus=1) as tracker:
        for message in (b"[]", b"7", b'{"vcpu": []}', b'{"vcpu": 1e999}', b'{"vcpu": 0}', b"\xff", b""):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
                peer.connect(address_of(ram.name))
                if message:
                    peer.send(message)
        vcpu = ProcessVcpu(library_path, ram, 0)
        tracker.exchange()
        vcpu.post(0, [9], 1)
        assert vcpu.wait()
        assert 9 in tracker.exchange().gfn.tolist()
        vcpu.end()


JOINS = """
import sys
from uffdtrack import join
from uffdtrack.errors import UffdtrackError
try:
    join(sys.argv[1], 0)
    print("joined")
except UffdtrackError as error:
    print("refused")
"""


def test_a_join_that_fails_leaves_the_place_free(library_path: Path) -> None:
    """A process that wants to join and is killed right away, again and again; then one that stays."""
    with GuestRam("8MiB") as ram, open_tracker(ram, "ring", vcpus=1) as tracker:
        ram.pages()[:, 0] = 1
        for delay in (0.0, 0.05, 0.1, 0.15, 0.2):
            process = subprocess.Popen([sys.executable, "-c", JOINS, ram.name], stdout=subprocess.PIPE)
            try:
                process.wait(delay or 0.001)
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate(timeout=DEADLINE)
        with pytest.raises(BaseException):  # noqa: B017 - whichever comes: a place that is free, or one gone
            for _ in range(3):
                tracker.pause()
                tracker.resume()
            raise CycleError("none has ended")
        vcpu = ProcessVcpu(library_path, ram, 0)
        tracker.pause()
        tracker.resume()
        vcpu.end()


TRACKER = """
import random, sys
from uffdtrack import GuestRam, open_tracker
from uffdtrack.errors import CycleError
ram, limit = GuestRam("8MiB"), int(sys.argv[2])
ram.pages()[:, 0] = 1
tracker = open_tracker(ram, sys.argv[1], vcpus=2, max_dirty_pages=limit or None)
tracker.activate()
print(ram.name, flush=True)
tracker.wait_joined(30)
print("joined", flush=True)
sys.stdin.readline()
for i in range(1 << 60):
    if i == 100:
        print("running", flush=True)
    if limit:
        tracker.wait_full(0.002)
    with tracker.paused():
        tracker.exchange()
"""


@with_limits([0, 60], OWN)
def test_death_of_the_tracker_after_many_pauses(engine: str, limit: int, library_path: Path) -> None:
    """kill -9 at any instant: no vCPU stands for longer than it takes to see that."""
    rng = random.Random(1)
    tracker = subprocess.Popen(
        [sys.executable, "-c", TRACKER, engine, str(limit)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert tracker.stdout and tracker.stdin
    try:
        ram = GuestRam.attach(tracker.stdout.readline().strip())
        vcpus = [ProcessVcpu(library_path, ram, i) for i in range(2)]
        assert tracker.stdout.readline() == "joined\n"
        tracker.stdin.write("go\n")
        tracker.stdin.flush()
        for vcpu in vcpus:
            vcpu.post(0, [rng.randrange(PAGES) for _ in range(20_000)], 3)
        assert tracker.stdout.readline() == "running\n"
    finally:
        tracker.kill()
        tracker.wait()
        tracker.stdin.close()
        tracker.stdout.close()
    for vcpu in vcpus:
        assert vcpu.wait(), "it stands on"
        vcpu.post(0, range(PAGES), 9)
        assert vcpu.wait()
        vcpu.end()
    ram.close()


@on(OWN)
def test_swapped_places_lose_nothing(make: Callable[..., Guest], engine: str) -> None:
    """Threads that write while their numbers are taken away and given to each other."""
    guest = make(engine, Config(2, "threads", shared=False))
    guest.copy(guest.tracker.exchange())
    tids = [vcpu._tid for vcpu in guest.vcpus]
    for vcpu in guest.vcpus:
        vcpu.post(STORM, range(PAGES), 1)
    for i in range(300):
        for number in range(2):
            guest.tracker.unbind(number)
        for number in range(2):
            guest.tracker.bind(number, tids[(number + i) % 2])
        guest.copy(guest.tracker.exchange())
    for vcpu in guest.vcpus:
        vcpu.stop()
        assert vcpu.wait()
    guest.copy(guest.tracker.exchange())
    if engine == "ring":  # threads that are no vCPU for a moment are not seen then: traits.sees_outside
        return
    assert not guest.stale()


def test_the_lists_live_as_long_as_the_tracker(make: Callable[..., Guest], engine: str) -> None:
    """A call that comes too late holds the core's tracker alone."""
    guest = make(engine, CONFIGS[1])
    guest.tracker.exchange()
    native = guest.tracker._c
    guest.tracker.close()
    gc.collect()
    assert [native.cycle.log[i].gfn[0] for i in (0, 1)] == [0, 0]  # read of memory that is there


@on(OWN)
def test_a_forked_child_has_no_tracker(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[1])
    guest.tracker.exchange()
    child = os.fork()
    if not child:
        refused = 0
        for call in (
            guest.tracker.exchange,
            guest.tracker.prepare,
            guest.tracker.fetch,
            guest.tracker.pending,
        ):
            try:
                call()
            except CycleError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
