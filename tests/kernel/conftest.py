"""What several tests of processes start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.work import ProcessRollback
from checkpoint.session import Session
from checkpoint.tree import TreeWriter
from checkpoint.tree_session import TreeSession
from tests.helpers import Build, Run, Spawn
from tests.kernel.forks import Forks
from tests.kernel.mapper import Mapper, open_session
from tests.kernel.rolled import WRONG
from tests.kernel.rollee import Rollee, differing


@pytest.fixture
def forks(kernel: None, root: None, spawn: Spawn, build: Build) -> Callable[[int], Forks]:
    return lambda children: Forks(spawn(build("forks"), children))


@pytest.fixture
def tree_of(tmp_path: Path) -> Iterator[Callable[[int], TreeSession]]:
    opened: list[Any] = []

    def begin(pid: int, engine: str = "scan") -> TreeSession:
        writer = TreeWriter(tmp_path / "t", b"", force=False)
        opened.append(writer)
        opened.append(TreeSession(pid, writer, engine, None))
        return opened[-1]

    yield begin
    for one in reversed(opened):
        one.close()


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


@pytest.fixture
def mapper(kernel: None, spawn: Spawn, tmp_path: Path) -> Mapper:
    made = Mapper(spawn, tmp_path / "c")
    assert made("1") == "1"
    return made


@pytest.fixture
def session(mapper: Mapper, process_engine: str) -> Iterator[Session]:
    yield from open_session(mapper, process_engine)


@pytest.fixture
def rollee(kernel: None, spawn: Spawn, build: Build) -> Rollee:
    return Rollee(spawn, build)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rollback compares all bytes before the target runs on, and names wrong ones in `warnings`."""
    commit = ProcessRollback.commit

    def and_look(self: ProcessRollback) -> Outcome:
        outcome = commit(self)
        outcome.warnings += [WRONG + text for text in differing(self.pid, self.view)]
        return outcome

    monkeypatch.setattr(ProcessRollback, "commit", and_look)


@pytest.fixture(params=["itself", "ring", "scan", "sync"])
def by(request: pytest.FixtureRequest, kernel: None, checked: None) -> str:
    """Who does it: a rollback by itself, or a session with this engine."""
    who: str = request.param
    return who


@pytest.fixture(params=["ring", "scan", "sync"])
def rolling(request: pytest.FixtureRequest, kernel: None) -> str:
    """Each engine whose session can roll back."""
    engine: str = request.param
    return engine


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened
