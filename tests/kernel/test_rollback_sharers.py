"""A rollback of shared memory changes it for all who map it: they are named, and writers are not harmed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback import sharers
from checkpoint.rollback.in_session import SessionRollback
from checkpoint.rollback.order import rollback
from checkpoint.rollback.request import Request, fingerprint
from checkpoint.rollback.tree import rollback_tree
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from checkpoint.tree import Tree
from checkpoint.tree_session import TreeSession
from tests.helpers import Run, Spawn, session_of
from uffdtrack import MAX_STOP

COUNTER = """
import ctypes, mmap, os, sys, threading
kind, path, forks = sys.argv[1:]
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
size = 2 * mmap.PAGESIZE
if kind == "system5":
    number = libc.shmget(0, size, 0o600)
    memory = (ctypes.c_uint8 * size).from_address(libc.shmat(number, None, 0))
    libc.shmctl(number, 0, None)
else:
    fd = os.memfd_create("counted") if kind == "memfd" else os.open(path, os.O_RDWR) if kind == "file" else -1
    if kind == "memfd":
        os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
reader, writer = os.pipe()
child = os.fork() if forks == "forks" else 0
if forks == "forks" and not child:
    os.close(writer)
    os.read(reader, 1)
    os._exit(0)
memory[0] = 1
print(child, flush=True)
for line in sys.stdin:
    if line == "unmap and begin\\n":
        memory[0] += 1
        memory.close()
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        print(0, flush=True)
        continue
    memory[0] += line == "count\\n"
    print(memory[0], flush=True)
"""
MAPS = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
access = mmap.ACCESS_READ if sys.argv[2] == "reads" else mmap.ACCESS_WRITE
memory = mmap.mmap(fd, mmap.PAGESIZE, access=access, offset=int(sys.argv[3]))
print(memory[0], flush=True)
sys.stdin.read()
"""
WORDS = "of the shared mapping at"


class Counter:
    """A process that counts in shared memory when it is told to; `child`: one that maps it, too, by fork."""

    def __init__(self, spawn: Spawn, kind: str, path: Path | None = None, forks: bool = False) -> None:
        words = "forks" if forks else "alone"
        self.process = spawn(sys.executable, "-c", COUNTER, kind, path or "", words)
        self.pid = self.process.pid
        assert self.process.stdout
        self.child = int(self.process.stdout.readline())

    def __call__(self, order: str) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(order.encode() + b"\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "counted"
    path.write_bytes(bytes(1 << 14))
    return path


def mapped(spawn: Spawn, file: Path, how: str, offset: int = 0) -> int:
    """The pid of a process that has mapped a page of a file."""
    process = spawn(sys.executable, "-c", MAPS, file, how, offset)
    assert process.stdout and process.stdout.readline()
    return process.pid


def take(pid: int, directory: Path) -> None:
    with ProcessTarget(pid) as target, ChainWriter(directory, b"", False) as chain:
        Session(target, chain).take()


def back(pid: int, directory: Path, anyway: bool = False) -> list[str]:
    """Roll a process back; returns what is said of memory that others map."""
    done = rollback(pid, Chain(directory).view(0), anyway)
    return [text for text in done.warnings if WORDS in text]


def refused(pid: int, directory: Path) -> str:
    with pytest.raises(RollbackRefusedError, match="the process is as it was") as error:
        rollback(pid, Chain(directory).view(0))
    return str(error.value)


def test_a_file_that_nobody_else_maps(
    kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run, file: Path
) -> None:
    """It goes back, and that is said, by name; not if it is as it was."""
    counter = Counter(spawn, "file", file)
    take(counter.pid, tmp_path / "c")
    assert back(counter.pid, tmp_path / "c") == []
    assert counter("count") == 2 and file.read_bytes()[0] == 2
    said = uffdtrack("rollback", counter.pid, tmp_path / "c").stderr
    assert f"1 page {WORDS}" in said and f"({file}) went back, and so did the file's contents\n" in said
    assert counter("look") == 1 and file.read_bytes()[0] == 1


def test_a_file_that_another_reads_or_writes(
    kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run, file: Path
) -> None:
    counter = Counter(spawn, "file", file)
    reader, elsewhere = mapped(spawn, file, "reads"), mapped(spawn, file, "writes", 1 << 13)
    take(counter.pid, tmp_path / "c")
    assert counter("count") == 2
    done = uffdtrack("rollback", counter.pid, tmp_path / "c", "--json")
    (warning,) = [text for text in json.loads(done.stdout)["warnings"] if WORDS in text]
    assert f"for process {reader} (" in warning and f"process {elsewhere} " not in warning
    writer = mapped(spawn, file, "writes")
    assert counter("count") == 2
    said = uffdtrack("rollback", counter.pid, tmp_path / "c", code=5).stderr
    assert f"with process {writer} (" in said and f"process {reader} " not in said
    assert "the process is as it was" in said and "--anyway" in said and counter("look") == 2
    (warning,) = back(counter.pid, tmp_path / "c", anyway=True)
    assert f"process {writer} " in warning and f"process {reader} " in warning
    assert f"process {elsewhere} " not in warning and counter("look") == 1


@pytest.mark.parametrize("kind", ["anonymous", "memfd", "system5"])
def test_memory_of_two(kernel: None, spawn: Spawn, tmp_path: Path, kind: str) -> None:
    """By fork. One that has it alone is the control: there is nothing to say."""
    alone = Counter(spawn, kind)
    take(alone.pid, tmp_path / "alone")
    assert alone("count") == 2
    assert back(alone.pid, tmp_path / "alone") == [] and alone("look") == 1

    counter = Counter(spawn, kind, forks=True)
    take(counter.pid, tmp_path / "c")
    assert back(counter.pid, tmp_path / "c") == []
    assert counter("count") == 2
    assert f"with process {counter.child} (" in refused(counter.pid, tmp_path / "c")
    assert counter("look") == 2
    (warning,) = back(counter.pid, tmp_path / "c", anyway=True)
    assert f"went back for process {counter.child} (" in warning and counter("look") == 1


def test_by_a_session(kernel: None, spawn: Spawn, tmp_path: Path) -> None:
    counter = Counter(spawn, "anonymous", forks=True)
    with ProcessTarget(counter.pid) as target, ChainWriter(tmp_path / "c", b"", False) as chain:
        session = Session(target, chain)
        session.take()

        def ask(anyway: bool) -> list[str]:
            view = Chain(tmp_path / "c").view(0)
            request = Request(counter.pid, 0, view.epoch.digest, fingerprint(view), anyway, MAX_STOP)
            done = SessionRollback(session, target, tmp_path / "c")(request, lambda: None)
            return [text for text in done.warnings if WORDS in text]

        assert ask(False) == []
        assert counter("count") == 2
        with pytest.raises(RollbackRefusedError, match=f"with process {counter.child} "):
            ask(False)
        assert counter("look") == 2
        (warning,) = ask(True)
        assert f"went back for process {counter.child} (" in warning and counter("look") == 1


def test_a_tree(
    kernel: None, root: None, spawn: Spawn, tmp_path: Path, file: Path, tree_of: Callable[[int], TreeSession]
) -> None:
    """Who goes back with the others is not named: only who is outside of the tree, or not in the rollback."""
    counter, directory = Counter(spawn, "file", file, forks=True), tmp_path / "t"
    session = tree_of(counter.pid)
    session.take()
    session.close()
    entry = Tree(directory).open(0)

    def roll(anyway: bool = False) -> list[str]:
        done = rollback_tree(counter.pid, entry, entry.views(), anyway)
        return [text for text in done.warnings if WORDS in text]

    assert counter("count") == 2
    assert f"with process {counter.child} (" in refused(counter.pid, directory / str(counter.pid))
    assert counter("look") == 2
    (warning,) = roll()
    assert warning.endswith(f"({file}) went back, and so did the file's contents") and counter("look") == 1
    outside = mapped(spawn, file, "writes")
    assert counter("count") == 2
    with pytest.raises(RollbackRefusedError, match=f"with process {outside} [^;]*; the process is as it was"):
        roll()
    assert counter("look") == 2
    (warning,) = roll(anyway=True)
    assert f"for process {outside} (" in warning and f"process {counter.child} " not in warning
    assert counter("look") == 1


def test_a_tree_by_its_session(
    kernel: None, root: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run, file: Path
) -> None:
    counter, tree = Counter(spawn, "file", file, forks=True), tmp_path / "t"
    session = session_of(spawn, counter.pid, tree, "--children", "--every", "60s", "--json")
    assert session.stdout and session.stdout.readline()
    outside = mapped(spawn, file, "writes")
    assert counter("count") == 2
    said = uffdtrack("rollback", counter.pid, f"{tree}@0", code=5).stderr
    assert (
        f"with process {outside} (" in said
        and f"process {counter.child} " not in said
        and counter("look") == 2
    )
    said = uffdtrack("rollback", counter.pid, f"{tree}@0", "--anyway").stderr
    assert f"for process {outside} (" in said and counter("look") == 1


def test_one_that_comes_in_the_last_moment(
    kernel: None, spawn: Spawn, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found in the stop, before anything is written."""
    counter = Counter(spawn, "file", file)
    take(counter.pid, tmp_path / "c")
    assert counter("count") == 2
    check = sharers.Sharing.check
    told, tell = os.pipe()

    def after_it_has_come(self: sharers.Sharing, *arguments: object) -> None:
        os.write(tell, str(mapped(spawn, file, "writes")).encode())
        check(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sharers.Sharing, "check", after_it_has_come)
    said = refused(counter.pid, tmp_path / "c")
    assert f"with process {os.read(told, 100).decode()} (" in said and counter("look") == 2
    os.close(told)
    os.close(tell)
