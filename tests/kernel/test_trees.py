"""A tree of processes is taken at one instant, and put back as a whole."""

from __future__ import annotations

import itertools
import json
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from checkpoint import tree_session
from checkpoint.chain import Chain
from checkpoint.image import EpochWriter
from checkpoint.rollback import Outcome, ProcessRollback
from checkpoint.tree import Tree, TreeEpoch, TreeWriter, numbers
from checkpoint.tree_rollback import rollback_tree
from checkpoint.tree_session import Member, TreeSession
from tests.helpers import wait_for
from uffdtrack import ProcessTree, TreeMember, TreeWindow, Window, children
from uffdtrack.errors import (
    EpochSkippedError,
    ImageError,
    InvalidInputError,
    PermissionDeniedError,
    RollbackRefusedError,
    StorageError,
    TargetError,
    TargetGoneError,
)

Spawn = Callable[..., subprocess.Popen[bytes]]
Run = Callable[..., subprocess.CompletedProcess[str]]
MINE, SHARED = 0x100000000000, 0x200000000000


class Forks:
    """tests/programs/forks.c"""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()

    def ask(self, what: str) -> str:
        self.tell(what)
        return self.read()

    def tell(self, what: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(what.encode())
        self.process.stdin.flush()

    def errors(self) -> int:
        return int(self.ask("s").split()[0])

    def token(self) -> int:
        return int(self.ask("s").split()[1])

    def go_on(self, token: int) -> None:
        """Until the token's number is larger."""
        self.tell("g")
        wait_for(lambda: self.token() > token, "the token goes round")


@pytest.fixture
def forks(kernel: None, root: None, spawn: Spawn, build: Callable[[str], Path]) -> Callable[[int], Forks]:
    return lambda children: Forks(spawn(build("forks"), children))


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Callable[[int], TreeSession]]:
    opened: list[Any] = []

    def begin(pid: int, engine: str = "scan") -> TreeSession:
        writer = TreeWriter(tmp_path / "t", b"", force=False)
        opened.append(writer)
        opened.append(TreeSession(pid, writer, engine, None))
        return opened[-1]

    yield begin
    for one in reversed(opened):
        one.close()


def cut_errors(entry: TreeEpoch) -> list[str]:
    """What no instant of forks.c can have."""
    wrong = []
    tokens: dict[int, int] = {}
    pages = set()
    for process in entry.processes:
        view = entry.view(process)
        if not np.isin([MINE // 4096, SHARED // 4096], view.pages).all():
            continue  # just after exec
        mine = view.read(np.array([MINE // 4096], np.uint64))[0].tobytes()
        pid, slot, count, token = struct.unpack_from("<4Q", mine)
        shared = view.read(np.array([SHARED // 4096], np.uint64))[0].tobytes()
        pages.add(shared)
        if pid != process["pid"]:
            continue  # it has not begun yet, or is about to end
        ahead = struct.unpack_from("<Q", shared, 8 + 8 * slot)[0] - count
        if ahead not in (0, 1):
            wrong.append(f"slot {slot} of {process['pid']} is {ahead} ahead")
        if slot < 3:
            tokens[slot] = token
    if len(pages) != 1:
        wrong.append(f"{len(pages)} contents of one shared page")
    if len(tokens) == 3 and not tokens[0] >= tokens[1] >= tokens[2] >= tokens[0] - 1:
        wrong.append(f"tokens {tokens}")
    if len(tokens) != 3:
        wrong.append(f"a process of the ring is missing: {tokens}")
    return wrong


@pytest.mark.parametrize("children", [0, 4])
def test_an_epoch_is_one_instant(
    forks: Callable[[int], Forks], session: Callable[..., TreeSession], children: int, tmp_path: Path
) -> None:
    target = forks(children)
    taker = session(target.pid)
    rows = [taker.take() for _ in range(8)]
    assert target.errors() == 0
    entries, files = Tree(tmp_path / "t").verify(b"")
    assert [entry.epoch for entry in entries] == list(range(8))
    assert [e for entry in entries for e in cut_errors(entry)] == []
    assert files >= 24
    most = max(len(row["processes"]) for row in rows)
    assert most == 3 if not children else most > 3
    # One of them stores the shared page, and only where it has changed.
    chains = [(Chain(tmp_path / "t" / p["directory"]), p["epoch"]) for p in entries[-1].processes]
    storing = [SHARED // 4096 in chain.view(epoch, alone=True).pages for chain, epoch in chains]
    assert storing.count(True) == 1


def test_one_after_another_is_noticed(
    forks: Callable[[int], Forks],
    session: Callable[..., TreeSession],
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
        return TreeWindow(windows, [], 0, 0, 0, 0, 0)

    taker = session(target.pid)
    monkeypatch.setattr(ProcessTree, "window", singly)
    for _ in range(2):
        taker.take()
    entries, _ = Tree(tmp_path / "t").verify(b"")
    assert [e for entry in entries for e in cut_errors(entry)]


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


@pytest.fixture
def held(forks: Callable[[int], Forks], uffdtrack: Run, tmp_path: Path) -> tuple[Forks, int, Path]:
    """A tree that has gone on since its epoch 0: the token's number then, and the directory."""
    target = forks(0)
    assert target.ask("h") == "held"
    uffdtrack("checkpoint", "--children", target.pid, "-o", tmp_path / "t", "--count", 1)
    then = target.token()
    target.go_on(then + 20)
    assert target.ask("h") == "held"
    return target, then, tmp_path / "t"


def test_failure_in_one_takes_back_the_others(
    held: tuple[Forks, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _, directory = held
    now = target.token()
    entry = Tree(directory).open(0)
    views = entry.views()
    last = entry.processes[-1]["pid"]
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
    commit, first = ProcessRollback.commit, entry.processes[0]["pid"]

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

    member = Tree(directory).open(0).processes[-1]["pid"]
    os.kill(member, signal.SIGKILL)
    wait_for(lambda: is_dead(member), "it has ended")
    done = uffdtrack("rollback", target.pid, f"{directory}@0", code=5)
    assert f"process {member} (forks) of epoch 0 has ended" in done.stderr


def is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_verbs_on_a_tree(held: tuple[Forks, int, Path], uffdtrack: Run, tmp_path: Path) -> None:
    target, _, directory = held
    rows = [json.loads(line) for line in uffdtrack("ls", directory, "--json").stdout.splitlines()]
    assert [len(row["processes"]) for row in rows] == [3]
    shown = json.loads(uffdtrack("show", f"{directory}@0", "--json").stdout)
    assert {p["comm"] for p in shown["processes"]} == {"forks"}
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
        writer.commit([], [], {})
    assert [name for name in theirs if not (directory / name).exists()] == []
    assert [path for path in old if path.exists()] == []


def loads(core: Path) -> list[int]:
    with core.open("rb") as file:
        return [s["p_vaddr"] for s in ELFFile(file).iter_segments() if s["p_type"] == "PT_LOAD"]


def test_a_base_is_never_passed_over_as_unchanged(
    kernel: None,
    root: None,
    spawn: Spawn,
    session: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was copied for a base is in no window, so that one like the last window says nothing of it."""
    taker = session(spawn("cat").pid)
    windows = []
    draft = Member.draft

    def keeps(self: Member, window: Window, places: Any) -> Any:
        windows.append(window)
        return draft(self, window, places)

    monkeypatch.setattr(Member, "draft", keeps)
    while not (row := taker.take())["processes"][0]["unchanged"]:
        assert row["epoch"] < 50
    (member,) = taker.members
    unchanged = draft(member, windows[-1], {})
    assert unchanged and unchanged.row["unchanged"]
    member.session.rebase()
    member.session.prepare()
    part = draft(member, windows[-1], {})
    assert part and part.row["base"] and not part.row["unchanged"]
    part.drop()


@pytest.mark.parametrize("name", ["epoch-00000001.tree", "member"])
def test_damage_is_found(
    forks: Callable[[int], Forks],
    session: Callable[..., TreeSession],
    uffdtrack: Run,
    tmp_path: Path,
    name: str,
) -> None:
    taker = session(forks(0).pid)
    for _ in range(3):
        taker.take()
    taker.close()
    process = Tree(tmp_path / "t").open(2).processes[-1]
    path = tmp_path / "t" / name
    if name == "member":
        path = tmp_path / "t" / process["directory"] / f"epoch-{process['epoch']:08d}.core"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError):
        Tree(tmp_path / "t").verify(b"")
    path.unlink()
    with pytest.raises(ImageError):
        Tree(tmp_path / "t").verify(b"")


@pytest.mark.parametrize("base", [False, True], ids=["later", "base"])
@pytest.mark.parametrize("at", ["finish", "sync", "rename", "sync_name"])
def test_a_full_disk_leaves_whole_epochs(
    at: str,
    base: bool,
    forks: Callable[[int], Forks],
    session: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A file cannot be written: there is no such epoch of the tree, and the next one lacks nothing."""
    taker = session(forks(0).pid)
    if not base:
        taker.take()
    step, calls = getattr(EpochWriter, at), itertools.count(1)

    def fails(self: EpochWriter, *arguments: Any) -> Any:
        if next(calls) == 2:
            raise StorageError("no space left")
        return step(self, *arguments)

    monkeypatch.setattr(EpochWriter, at, fails)
    with pytest.raises(StorageError):
        taker.take()
    assert numbers(tmp_path / "t") == ([] if base else [0])
    assert not list((tmp_path / "t").glob("*/.*.tmp"))
    assert {p.name for p in (tmp_path / "t").glob("*/*.core")} == (set() if base else {"epoch-00000000.core"})
    for _ in range(3 + base):
        taker.take()
    entries, _ = Tree(tmp_path / "t").verify(b"")
    assert [entry.epoch for entry in entries] == [0, 1, 2, 3]
    assert [e for entry in entries for e in cut_errors(entry)] == []


def test_who_stores_for_others_ends_before_it_is_described(
    forks: Callable[[int], Forks],
    session: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The others have no epoch then that would name memory that is nowhere."""
    taker = session(forks(2).pid)
    draft, lost = Member.draft, []

    def loses(self: Member, window: Window, parts: Any) -> Any:
        if len(lost) < 2 and not window.elsewhere and self.target.pid == taker.root:
            lost.append(window)
            monkeypatch.setattr(self.target, "describe", gone)
            part = draft(self, window, parts)
            monkeypatch.undo()
            monkeypatch.setattr(Member, "draft", loses)
            assert part is None and not parts
            return part
        return draft(self, window, parts)

    def gone(_: Window) -> None:
        raise TargetGoneError("it has ended")

    monkeypatch.setattr(Member, "draft", loses)
    for _ in range(3):
        taker.take()
    assert len(lost) == 2
    entries, _ = Tree(tmp_path / "t").verify(b"")
    assert [entry.epoch for entry in entries] == [0, 1, 2]
    assert [e for entry in entries for e in cut_errors(entry)] == []


def test_who_cannot_be_followed_has_not_ended(
    kernel: None,
    root: None,
    spawn: Spawn,
    session: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It becomes by exec what cannot be followed, and then what can."""
    process = spawn("cat")
    taker = session(process.pid)
    taker.take()

    def refused(*_: object) -> None:
        raise TargetError("32-bit")

    monkeypatch.setattr(tree_session, "REFUSED_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Member, "prepare", refused)
        with pytest.raises(EpochSkippedError, match=f"process {process.pid} .cat.: 32-bit"):
            taker.take()
        assert not taker.ended()
    assert len(taker.take()["processes"]) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Member, "prepare", refused)
        with pytest.raises(EpochSkippedError):
            taker.take()
        process.kill()
        process.wait()
        with pytest.raises(TargetGoneError):
            taker.take()
    assert taker.ended()


def test_who_ends_at_the_stop_is_no_end_of_the_session(
    kernel: None,
    root: None,
    spawn: Spawn,
    session: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ptrace(2) says EPERM of one that another has killed just then, as a debugger its child."""
    process = spawn("sh", "-c", "sleep 60 & exec sleep 60")
    wait_for(lambda: len(children(process.pid)) == 1, "it has a child")
    (child,) = children(process.pid)
    taker = session(process.pid)
    assert len(taker.take()["processes"]) == 2
    window = taker.tree.window

    def killed(members: list[TreeMember], *rest: Any) -> TreeWindow:
        pids = [member.tracee.pid for member in members]
        if child not in pids:
            return window(members, *rest)
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: is_dead(child), "it is dead")
        taker.tree.failed = pids.index(child)
        raise PermissionDeniedError("cannot stop")

    monkeypatch.setattr(taker.tree, "window", killed)
    assert [p["pid"] for p in taker.take()["processes"]] == [process.pid]
