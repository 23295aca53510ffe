"""Threads that are born and end while a process is being stopped: nobody runs when it stands."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.helpers import Build, Spawn, broken, wait_for
from uffdtrack import PAGE
from uffdtrack.tracee import Tracee

Count = Callable[[int], int]


def states(pid: int) -> dict[str, str]:
    """Of all threads; of one that has just gone: X."""
    found = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{tid}/stat") as stat:
                found[tid] = stat.read().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            found[tid] = "X"
    return found


@pytest.fixture
def count_running(kernel: None, spawn: Spawn, build: Build) -> Callable[[int, str], Count]:
    """Stop such a process so many times; in how many stops somebody has run."""

    def start(chains: int, ways: str) -> Count:
        process = spawn(build("chains"), chains, ways)
        assert process.stdout
        address, pid = int(process.stdout.readline()), process.pid

        def contents(tid: int) -> bytes:
            with open(f"/proc/{pid}/task/{tid}/mem", "rb", buffering=0) as mem:
                mem.seek(address)
                return mem.read(PAGE)

        def count(stops: int) -> int:
            wrong = 0
            with Tracee(pid) as tracee:
                for _ in range(stops):
                    tracee.stop()
                    tid = tracee.threads[0].tid
                    before, threads = contents(tid), states(pid)
                    after, threads_after = contents(tid), states(pid)
                    runs = set(threads.values()) - set("tZX")
                    wrong += before != after or bool(runs) or not threads_after.keys() <= threads.keys()
                    tracee.resume()
            return wrong

        return count

    return start


@pytest.mark.parametrize(("chains", "ways"), [(1, ""), (2, "s"), (4, "sw"), (2, "swf")])
def test_nobody_runs(count_running: Callable[[int, str], Count], chains: int, ways: str) -> None:
    assert not count_running(chains, ways)(200)


@pytest.mark.slow
@pytest.mark.parametrize(("chains", "ways"), [(1, ""), (2, "s"), (4, "sw"), (1, "f"), (2, "swf")])
def test_nobody_runs_in_many(count_running: Callable[[int, str], Count], chains: int, ways: str) -> None:
    assert not count_running(chains, ways)(4000)


@pytest.mark.parametrize("times", [40, pytest.param(800, marks=pytest.mark.slow)])
def test_a_first_thread_that_ends_in_the_stop(kernel: None, spawn: Spawn, build: Build, times: int) -> None:
    """Nobody waits for it, and its parent hears of the end as soon as all have ended."""

    def stop_and_end() -> None:
        process = spawn(build("chains"), 1, "f")
        assert process.stdout and process.stdout.readline()
        with Tracee(process.pid) as tracee:
            for _ in range(3):
                tracee.stop()
                tracee.resume()
            process.kill()
            wait_for(lambda: tracee.settle(0.1) and process.poll() is not None, "it is reaped")

    for _ in range(times):
        stop_and_end()


@pytest.mark.slow
def test_negative_control(count_running: Callable[[int, str], Count]) -> None:
    """Where a listing of the threads is the last word, one is missed now and then."""
    count = count_running(1, "")
    with broken("listing"):
        assert any(count(500) for _ in range(40))
