"""A tree of processes is taken at one instant, and its files are a whole."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from checkpoint import sink
from checkpoint.chain import Chain
from checkpoint.epoch import Times, TreeRow
from checkpoint.epoch_writer import EpochWriter
from checkpoint.errors import ImageError
from checkpoint.tree import Tree, TreeWriter, tree_numbers
from checkpoint.tree_session import TreeSession
from tests.helpers import Run, Spawn, wait_for
from tests.kernel.forks import SHARED, Forks, cut_errors
from uffdtrack import ProcessTree, TreeMember, TreeWindow, Window
from uffdtrack.errors import InvalidInputError, StorageError, TargetError


@pytest.mark.parametrize("children", [0, 4])
def test_an_epoch_is_one_instant(
    forks: Callable[[int], Forks], tree_of: Callable[..., TreeSession], children: int, tmp_path: Path
) -> None:
    target = forks(children)
    taker = tree_of(target.pid)
    rows = [taker.take() for _ in range(8)]
    assert target.errors() == 0
    entries, files = Tree(tmp_path / "t").verify(b"")
    assert [entry.epoch for entry in entries] == list(range(8))
    assert [e for entry in entries for e in cut_errors(entry)] == []
    assert files >= 24
    most = max(len(row.processes) for row in rows)
    assert most == 3 if not children else most > 3
    # One of them stores the shared page, and only where it has changed.
    chains = [(Chain(tmp_path / "t" / p.directory), p.epoch) for p in entries[-1].processes]
    storing = [SHARED // 4096 in chain.view(epoch, alone=True).pages for chain, epoch in chains]
    assert storing.count(True) == 1


def test_one_after_another_is_noticed(
    forks: Callable[[int], Forks],
    tree_of: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Negative control: the members stopped singly, as by so many sessions."""

    target = forks(0)

    def singly(self: ProcessTree, members: list[TreeMember], *_: Any, **__: Any) -> TreeWindow:
        windows: list[Window | TargetError] = []
        for member in members:
            windows.append(member.space.window(member.tracee, member.pending))
            token = target.token()
            wait_for(lambda token=token: target.token() > token + 1, "the token goes round")
        return TreeWindow(windows, [], stop_us=0, harvest_us=0, copy_us=0, rearm_us=0, pause_us=0)

    taker = tree_of(target.pid)
    monkeypatch.setattr(ProcessTree, "window", singly)
    for _ in range(2):
        taker.take()
    entries, _ = Tree(tmp_path / "t").verify(b"")
    assert [e for entry in entries for e in cut_errors(entry)]


def test_verbs_on_a_tree(held: tuple[Forks, int, Path], uffdtrack: Run, tmp_path: Path) -> None:
    target, _, directory = held
    rows = [json.loads(line) for line in uffdtrack("ls", directory, "--json").stdout.splitlines()]
    assert [len(row["processes"]) for row in rows] == [3]
    shown = json.loads(uffdtrack("show", f"{directory}@0", "--json").stdout)
    assert {p["comm"] for p in shown["processes"]} == {"forks"}
    text = uffdtrack("show", f"{directory}@0").stdout
    assert "taken     2" in text and f"pages     {shown['pages']} (" in text
    assert json.loads(uffdtrack("verify", directory, "--json").stdout)["ok"]
    places = [f"{directory}/{p['directory']}@{p['epoch']}" for p in shown["processes"]]
    # The page that they share is in each core; the first process has stored it.
    uffdtrack("export", places[-1], "-o", tmp_path / "core")
    assert SHARED in loads(tmp_path / "core")
    for verb in (["export", "-o", tmp_path / "core"], ["diff", places[0]]):
        assert places[0] in uffdtrack(*verb, f"{directory}@0", code=2).stderr
    done = uffdtrack("checkpoint", "--children", target.pid, "-o", directory, "--count", 1, code=2)
    assert "--force" in done.stderr
    done = uffdtrack("checkpoint", target.pid, "-o", directory, "--count", 1, code=2)
    assert "tree" in done.stderr
    done = uffdtrack("compact", places[0].partition("@")[0], "--before", 0, code=2)
    assert "tree" in done.stderr
    uffdtrack(
        "checkpoint", "--children", target.pid, "-o", directory, "--count", 2, "--every", "50ms", "--force"
    )
    assert Tree(directory).epochs == [0, 1]
    uffdtrack("verify", directory)
    assert len([name for name in os.listdir(directory) if name[0].isdigit()]) == 3


def test_files_of_others_are_not_deleted(tmp_path: Path) -> None:
    directory = tmp_path / "t"
    directory.mkdir()
    theirs = ["headers.txt", "head2", "2024", "epoch-00000000.core.txt", "12/notes", "12/head.txt"]
    for name in theirs[:4]:
        (directory / name).write_text("mine")
    TreeWriter(directory, b"", force=False).close()  # it holds no checkpoints
    (directory / "12").mkdir()
    for name in theirs[4:]:
        (directory / name).write_text("mine")
    old = [directory / name for name in ("epoch-00000000.core", "head", "12/head")]
    for path in old:
        path.write_text("a chain's")
    with pytest.raises(InvalidInputError, match="--force"):
        TreeWriter(directory, b"", force=False)
    with TreeWriter(directory, b"", force=True) as writer:
        writer.commit([], TreeRow(0, 1, "scan", True, 0, 0, 0, 0, 0, Times(0, 0, 0, 0, 0), []))
    assert [name for name in theirs if not (directory / name).exists()] == []
    assert [path for path in old if path.exists()] == []


def loads(core: Path) -> list[int]:
    with core.open("rb") as file:
        return [s["p_vaddr"] for s in ELFFile(file).iter_segments() if s["p_type"] == "PT_LOAD"]


@pytest.mark.parametrize("name", ["epoch-00000001.tree", "member"])
def test_damage_is_found(
    forks: Callable[[int], Forks],
    tree_of: Callable[..., TreeSession],
    uffdtrack: Run,
    tmp_path: Path,
    name: str,
) -> None:
    taker = tree_of(forks(0).pid)
    for _ in range(3):
        taker.take()
    taker.close()
    process = Tree(tmp_path / "t").open(2).processes[-1]
    path = tmp_path / "t" / name
    if name == "member":
        path = tmp_path / "t" / process.directory / f"epoch-{process.epoch:08d}.core"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError):
        Tree(tmp_path / "t").verify(b"")
    path.unlink()
    with pytest.raises(ImageError):
        Tree(tmp_path / "t").verify(b"")


@pytest.mark.parametrize("base", [False, True], ids=["later", "base"])
@pytest.mark.parametrize("at", ["finish", "sync", "rename", "sync_directory"])
def test_a_full_disk_leaves_whole_epochs(
    at: str,
    base: bool,
    forks: Callable[[int], Forks],
    tree_of: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A file cannot be written: there is no such epoch of the tree, and the next one lacks nothing."""
    taker = tree_of(forks(0).pid)
    if not base:
        taker.take()
    where: Any = sink if at == "sync_directory" else EpochWriter
    step, calls = getattr(where, at), itertools.count(1)

    def fails(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise StorageError("no space left")
        return step(*arguments)

    monkeypatch.setattr(where, at, fails)
    with pytest.raises(StorageError):
        taker.take()
    assert tree_numbers(tmp_path / "t") == ([] if base else [0])
    # A base that was copied while its process ran, and not finished when another failed, is kept.
    begun = {member.chain.directory for member in taker.members if member.stream.in_base}
    assert {path.parent for path in (tmp_path / "t").glob("*/.*.tmp")} <= begun
    assert {p.name for p in (tmp_path / "t").glob("*/*.core")} == (set() if base else {"epoch-00000000.core"})
    for _ in range(3 + base):
        taker.take()
    entries, _ = Tree(tmp_path / "t").verify(b"")
    assert [entry.epoch for entry in entries] == [0, 1, 2, 3]
    assert [e for entry in entries for e in cut_errors(entry)] == []


TWINS = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
assert not libc.unshare(0x08000000)  # CLONE_NEWIPC: ids of our own
(here, there), (done, say) = os.pipe(), os.pipe()
child = os.fork()
if not child:
    inode = int(os.read(here, 32))
    with open("/proc/sys/kernel/shm_next_id", "w") as file:
        file.write(str(inode))
    segment = libc.shmget(0, 4096, 0o1600)
    assert segment == inode, (segment, inode)
    at = libc.shmat(segment, None, 0)
    libc.shmctl(segment, 0, None)
    ctypes.memset(at, ord("S"), 4096)
    os.write(say, f"{at:x}".encode())
    sys.stdin.read()
    os._exit(0)
fd = os.memfd_create("twin")
os.ftruncate(fd, 4096)
memory = mmap.mmap(fd, 4096)
memory[:] = b"M" * 4096
os.write(there, str(os.fstat(fd).st_ino).encode())
at = os.read(done, 32).decode()
mine = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(f"{mine:x} {at} {child}", flush=True)
sys.stdin.read()
"""


def test_a_segment_with_the_inode_number_of_a_memfd(
    root: None, spawn: Spawn, tree_of: Callable[..., TreeSession], tmp_path: Path
) -> None:
    """System V numbers its inodes itself, on the device of memfds: each is stored with its own content."""
    process = spawn(sys.executable, "-c", TWINS)
    assert process.stdout
    memfd, segment, child = process.stdout.readline().split()
    tree_of(process.pid).take()
    (entry,), _ = Tree(tmp_path / "t").verify(b"")
    found = {}
    for member in entry.processes:
        at = int(segment if member.pid == int(child) else memfd, 16)
        found[member.pid] = bytes(entry.view(member).read(np.array([at // 4096], np.uint64))[0])
    assert found == {process.pid: b"M" * 4096, int(child): b"S" * 4096}
