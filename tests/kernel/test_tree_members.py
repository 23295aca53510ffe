"""Members of a tree that end, become others, or cannot be followed; what a base of theirs holds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint.tree import Tree
from checkpoint.tree_member import Member
from checkpoint.tree_session import TreeSession
from tests.helpers import Spawn, wait_for
from tests.kernel.forks import Forks, cut_errors, is_dead
from uffdtrack import TreeMember, TreeWindow, Window, children
from uffdtrack.errors import (
    PermissionDeniedError,
    TargetBusyError,
    TargetError,
    TargetGoneError,
)


def test_a_base_is_never_passed_over_as_unchanged(
    kernel: None,
    root: None,
    spawn: Spawn,
    tree_of: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was copied for a base is in no window, so that one like the last window says nothing of it."""
    taker = tree_of(spawn("cat").pid)
    windows = []
    part_of = Member.part

    def keeps(self: Member, window: Window) -> Any:
        windows.append(window)
        return part_of(self, window)

    monkeypatch.setattr(Member, "part", keeps)
    while not (row := taker.take()).processes[0].member.unchanged:
        assert row.epoch < 50
    (member,) = taker.members
    unchanged = part_of(member, windows[-1])
    assert unchanged
    unchanged.write()
    assert unchanged.row.member and unchanged.row.member.unchanged
    member.stream.rebase()
    member.stream.prepare()
    part = part_of(member, windows[-1])
    assert part and part.row.base
    part.write()
    assert part.row.member and not part.row.member.unchanged
    part.drop()


@pytest.mark.parametrize("behind", [False, True], ids=["", "while others are written"])
def test_who_stores_for_others_ends_before_it_is_described(
    forks: Callable[[int], Forks],
    tree_of: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    behind: bool,
) -> None:
    """The others have no epoch then that would name memory that is nowhere."""
    taker = tree_of(forks(2).pid)
    if behind:
        taker.pipeline.durable = 1000.0
        taker.take()
        for _ in range(3):
            taker.put()
    part_of, lost = Member.part, []

    def loses(self: Member, window: Window) -> Any:
        if len(lost) < 2 and not window.elsewhere and self.target.pid == taker.root:
            lost.append(window)
            monkeypatch.setattr(self.target, "describe", gone)
            part = part_of(self, window)
            monkeypatch.undo()
            monkeypatch.setattr(Member, "part", loses)
            assert part is None
            return part
        return part_of(self, window)

    def gone(_: Window) -> None:
        raise TargetGoneError("it has ended")

    monkeypatch.setattr(Member, "part", loses)
    for _ in range(3):
        taker.put() if behind else taker.take()
    taker.pipeline.close()
    assert len(lost) == 2
    entries, _ = Tree(tmp_path / "t").verify(b"")
    assert [entry.epoch for entry in entries] == list(range(7 if behind else 3))
    assert [e for entry in entries for e in cut_errors(entry)] == []


def test_who_cannot_be_followed_has_not_ended(
    kernel: None,
    root: None,
    spawn: Spawn,
    tree_of: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It becomes by exec what cannot be followed, and then what can."""
    process = spawn("cat")
    taker = tree_of(process.pid)
    taker.take()

    def refused(*_: object) -> None:
        raise TargetError("32-bit")

    monkeypatch.setattr("checkpoint.tree_roster.REFUSED_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Member, "prepare", refused)
        with pytest.raises(TargetBusyError, match=f"process {process.pid} .cat.: 32-bit"):
            taker.take()
        assert not taker.ended()
    assert len(taker.take().processes) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Member, "prepare", refused)
        with pytest.raises(TargetBusyError):
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
    tree_of: Callable[..., TreeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ptrace(2) says EPERM of one that another has killed just then, as a debugger its child."""
    process = spawn("sh", "-c", "sleep 60 & exec sleep 60")
    wait_for(lambda: len(children(process.pid)) == 1, "it has a child")
    (child,) = children(process.pid)
    taker = tree_of(process.pid)
    assert len(taker.take().processes) == 2
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
    assert [p.pid for p in taker.take().processes] == [process.pid]
