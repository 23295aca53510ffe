"""Others that a rollback would harm, and it finds late: nothing has ended when it is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback import sharers
from checkpoint.rollback.tree import rollback_tree
from checkpoint.tree import Tree
from checkpoint.tree_session import TreeSession
from tests.helpers import Spawn
from tests.kernel.test_rollback_sharers import MAPS, Counter, back, file, mapped, refused, take
from uffdtrack import children

__all__ = ["file"]
TWO = """
import ctypes, mmap, os, signal, sys, threading
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096)
memory[0] = 0
pipes = os.pipe(), os.pipe()
child = os.fork()
if not child:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.read(pipes[0][0], 1)
else:
    print(child, flush=True)
    sys.stdin.readline()
memory[0] += 2
memory.close()
threading.Thread(target=threading.Event().wait, daemon=True).start()
if child:
    os.write(pipes[0][1], b"x")
    os.read(pipes[1][0], 1)
    print(flush=True)
else:
    os.write(pipes[1][1], b"x")
threading.Event().wait()
"""
"""Two of a tree unmap a file and begin a thread when they are told to."""


def test_nothing_ends_where_it_is_refused(kernel: None, spawn: Spawn, tmp_path: Path, file: Path) -> None:
    """Its mapping is gone, so that what would change is known late; a thread born since lives on."""
    counter = Counter(spawn, "file", file)
    mapped(spawn, file, "writes")
    take(counter.pid, tmp_path / "c")
    counter("unmap and begin")
    threads = os.listdir(f"/proc/{counter.pid}/task")
    assert len(threads) == 2
    refused(counter.pid, tmp_path / "c")
    assert os.listdir(f"/proc/{counter.pid}/task") == threads and file.read_bytes()[0] == 2
    back(counter.pid, tmp_path / "c", anyway=True)
    assert len(os.listdir(f"/proc/{counter.pid}/task")) == 1 and counter("look") == 1


def test_nothing_ends_in_a_tree_where_one_is_refused(
    kernel: None, root: None, spawn: Spawn, tmp_path: Path, file: Path, tree_of: Callable[[int], TreeSession]
) -> None:
    """Each has a thread born since, and the mapping of each is gone."""
    shell = spawn(sys.executable, "-c", TWO, file)
    assert shell.stdin and shell.stdout and shell.stdout.readline()
    pids = [shell.pid, *children(shell.pid)]
    session = tree_of(shell.pid)
    session.take()
    session.close()
    outside = mapped(spawn, file, "writes")
    shell.stdin.write(b"go\n")
    shell.stdin.flush()
    assert shell.stdout.readline()
    threads = [os.listdir(f"/proc/{pid}/task") for pid in pids]
    assert [len(found) for found in threads] == [2, 2]
    entry = Tree(tmp_path / "t").open(0)
    with pytest.raises(RollbackRefusedError, match=f"with process {outside} "):
        rollback_tree(shell.pid, entry, entry.views())
    assert [os.listdir(f"/proc/{pid}/task") for pid in pids] == threads and file.read_bytes()[0] == 4


def test_one_that_has_mapped_it_since_the_look(
    kernel: None, spawn: Spawn, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older process, before the target stops."""
    counter = Counter(spawn, "file", file)
    take(counter.pid, tmp_path / "c")
    assert counter("count") == 2
    late = spawn(sys.executable, "-c", "import sys\nsys.stdin.readline()\n" + MAPS, file, "writes", 0)
    look, looked = sharers.Mappers.look, False

    def and_it_maps(self: sharers.Mappers) -> None:
        nonlocal looked
        look(self)
        if not looked:
            looked = True
            assert late.stdin and late.stdout
            late.stdin.write(b"go\n")
            late.stdin.flush()
            assert late.stdout.readline()

    monkeypatch.setattr(sharers.Mappers, "look", and_it_maps)
    assert f"with process {late.pid} (" in refused(counter.pid, tmp_path / "c")
