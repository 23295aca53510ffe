"""A tree of processes is put back as a whole, or not at all."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.request import Request, fingerprint_of_all
from checkpoint.rollback.tree import rollback_tree
from checkpoint.rollback.work import ProcessRollback
from checkpoint.tree import Tree
from tests.helpers import Run, Spawn, wait_for
from tests.kernel.forks import Forks, is_dead
from tests.kernel.tree_walk import Walk
from uffdtrack.errors import TargetError


def test_a_tree_goes_back_whole(forks: Callable[[int], Forks], uffdtrack: Run, tmp_path: Path) -> None:
    target = forks(0)
    assert target.ask("h") == "held"
    uffdtrack("checkpoint", "--children", target.pid, "-o", tmp_path / "t", "--count", 2, "--every", "100ms")
    then = target.token()
    target.go_on(then + 200)
    assert target.ask("h") == "held"
    done = uffdtrack("rollback", target.pid, f"{tmp_path}/t@1", "--json")
    outcome = json.loads(done.stdout)
    assert len(outcome["processes"]) == 3
    # The first one has been asked for its number since; the others' own checks would miss what is not theirs.
    assert target.token() == then
    target.go_on(then + 200)
    assert target.errors() == 0


def test_failure_in_one_takes_back_the_others(
    held: tuple[Forks, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _, directory = held
    now = target.token()
    entry = Tree(directory).open(0)
    views = entry.views()
    last = entry.processes[-1].pid
    apply = ProcessRollback.apply

    def fails(self: ProcessRollback) -> None:
        apply(self)
        if self.pid == last:
            raise self.taken_back(TargetError("sabotage"))

    monkeypatch.setattr(ProcessRollback, "apply", fails)
    with pytest.raises(RollbackRefusedError, match=r"sabotage.*as it was; so are the others"):
        rollback_tree(target.pid, entry, views)
    assert target.token() == now
    target.go_on(now + 200)
    assert target.errors() == 0


def test_failure_at_the_end_does_not_leave_the_others_between(
    held: tuple[Forks, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, then, directory = held
    entry = Tree(directory).open(0)
    views = entry.views()
    commit, first = ProcessRollback.commit, entry.processes[0].pid

    def fails(self: ProcessRollback) -> Outcome:
        outcome = commit(self)
        if self.pid == first:
            raise TargetError("sabotage")
        return outcome

    monkeypatch.setattr(ProcessRollback, "commit", fails)
    with pytest.raises(TargetError, match=f"process {first} .*sabotage"):
        rollback_tree(target.pid, entry, views)
    assert target.token() == then
    target.go_on(then + 200)
    assert target.errors() == 0


def test_who_has_ended_or_was_born_is_named(
    held: tuple[Forks, int, Path], uffdtrack: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, then, directory = held
    target.tell("c")  # one child, which stays
    born = int(target.read())
    done = uffdtrack("rollback", target.pid, f"{directory}@0", code=5)
    assert f"{born} (forks)" in done.stderr
    uffdtrack("rollback", target.pid, f"{directory}@0", "--anyway")
    assert target.token() == then
    wait_for(lambda: is_dead(born), "the child has ended")
    target.go_on(then + 200)
    assert target.errors() == 0

    member = Tree(directory).open(0).processes[-1].pid
    os.kill(member, signal.SIGKILL)
    wait_for(lambda: is_dead(member), "it has ended")
    done = uffdtrack("rollback", target.pid, f"{directory}@0", code=5)
    assert f"process {member} (forks) of epoch 0 has ended" in done.stderr


FORKS_A_WRITER = """
import mmap, os, sys
memory = mmap.mmap(-1, 64 * 4096)
print(os.getpid(), flush=True)
for line in sys.stdin:
    if line == "fork\\n" and not os.fork():
        while True:
            for at in range(0, len(memory), 4096): memory[at] = 0x5A
    print(sum(memory[at] for at in range(0, len(memory), 4096)), flush=True)
"""


@pytest.mark.parametrize("session", [True, False])
def test_who_will_be_ended_writes_nothing_more(
    kernel: None, spawn: Spawn, in_memory: Path, session: bool
) -> None:
    """A child that was born since the epoch, and that writes memory that it shares, all the time."""
    process = spawn(sys.executable, "-c", FORKS_A_WRITER)
    assert process.stdin and process.stdout

    def ask(line: bytes) -> bytes:
        assert process.stdin and process.stdout
        process.stdin.write(line)
        process.stdin.flush()
        return process.stdout.readline()

    process.stdout.readline()
    for number in range(4):
        with ExitStack() as stack:
            walk = Walk(stack, process.pid, in_memory / f"c{number}", "scan")
            walk.session.take()
            entry = Tree(walk.directory).open(0)
            if not session:
                stack.close()
            ask(b"fork\n")
            wait_for(lambda: ask(b"look\n") != b"0\n", "it writes")
            if session:
                files = fingerprint_of_all(entry.views())
                walk.rollback(Request(process.pid, 0, entry.digest, files, True, 5.0), lambda: None)
            else:
                rollback_tree(process.pid, entry, entry.views(), anyway=True)
            assert ask(b"look\n") == b"0\n"
