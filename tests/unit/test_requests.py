"""The socket by which a session is asked for a rollback."""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from checkpoint.errors import ImageError, RollbackRefusedError
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.request import SOCKET, Request, ask, connect, is_served
from checkpoint.rollback.requests import Requests
from tests.helpers import wait_for
from uffdtrack.errors import (
    InvalidInputError,
    PermissionDeniedError,
    StorageError,
    TargetBusyError,
    TargetError,
    TargetGoneError,
    UffdtrackError,
)

REQUEST = Request(1, 2, "digest", "files", False, 5.0)


class Session:
    """Serves in this thread what clients ask in theirs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[Request] = []
        self.error: Exception | None = None
        self.woken = threading.Semaphore(0)
        self.clients = ThreadPoolExecutor()
        self.requests = Requests(directory, self.work, self.woken.release)

    def work(self, request: Request, begun: Callable[[], None]) -> Outcome:
        begun()
        self.asked.append(request)
        if self.error:
            raise self.error
        return Outcome(request.epoch, pages=7, warnings=["\udcff"])

    def ask(self, request: Request = REQUEST) -> Future[Outcome | None]:
        return self.clients.submit(ask, self.directory, request)

    def serve(self) -> None:
        assert self.woken.acquire(timeout=30)
        assert self.requests.asked()
        self.requests.serve()

    def close(self) -> None:
        self.requests.close()
        self.clients.shutdown()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path)
    yield made
    made.close()


def test_an_answer(session: Session) -> None:
    session.requests.serve()
    answer = session.ask()
    session.serve()
    assert answer.result() == Outcome(2, pages=7, warnings=["\udcff"])
    assert session.asked == [REQUEST]


@pytest.mark.parametrize(
    "error",
    [
        RollbackRefusedError("no"), ImageError("no"), InvalidInputError("no"), StorageError("no"),
        TargetBusyError("it is busy"), TargetGoneError("no"), TargetError("no"), PermissionDeniedError("no"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_errors_come_as_they_are(session: Session, error: Any) -> None:
    session.error = error
    answer = session.ask()
    session.serve()
    caught = answer.exception()
    assert isinstance(caught, UffdtrackError)
    assert (type(caught), str(caught)) == (type(error), str(error))
    assert caught.exit_code == error.exit_code


def test_an_error_that_nobody_foresaw(session: Session) -> None:
    session.error = ZeroDivisionError("by zero")
    answer = session.ask()
    session.serve()
    assert str(answer.exception()) == "rollback failed: ZeroDivisionError: by zero"


def test_one_at_a_time(session: Session) -> None:
    answers = [session.ask(Request(n, n, "", "", False, 1.0)) for n in range(5)]
    for _ in answers:
        session.serve()
        assert not session.requests.asked()
    assert [answer.result().epoch for answer in answers] == list(range(5))  # type: ignore[union-attr]
    assert sorted(r.pid for r in session.asked) == list(range(5))


def test_another_user(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoint.rollback.requests.peer_of", lambda connection: os.geteuid() + 1)
    with pytest.raises(PermissionDeniedError, match="of another user"):
        session.ask().result()
    monkeypatch.setattr("checkpoint.rollback.request.peer_of", lambda connection: os.geteuid() + 1)
    assert not is_served(session.directory)
    assert session.asked == []


def test_a_client_that_has_gone_is_passed_over(session: Session) -> None:
    connection = connect(session.directory)
    assert connection
    connection.sendall(json.dumps(REQUEST.to_json()).encode() + b"\n")
    connection.close()
    session.serve()
    assert session.asked == []
    answer = session.ask()
    session.serve()
    assert answer.result()


@pytest.mark.parametrize("text", [b"{}", b"[" * 60000, b"\xff", b"1" * 70000, b'{"schema": 1}'], ids=range(5))
def test_rubbish_is_answered(session: Session, text: bytes) -> None:
    connection = connect(session.directory)
    assert connection
    with connection, connection.makefile("rb") as stream:
        connection.sendall(text + b"\n")
        assert json.loads(stream.readline())["error"] == "InvalidInputError"
    answer = session.ask()
    session.serve()
    assert answer.result()


def test_a_client_that_drips_is_not_waited_for(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoint.rollback.requests.SECONDS", 0.05)
    connection = connect(session.directory)
    assert connection
    with connection, connection.makefile("rb") as stream:
        with suppress(BrokenPipeError):
            while not select.select([connection], [], [], 0.01)[0]:
                connection.send(b" ")
        assert "did not come in time" in json.loads(stream.readline())["text"]


def test_the_end_does_not_wait_for_a_client(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoint.rollback.requests.SECONDS", 3600.0)
    connection = connect(session.directory)
    assert connection
    with connection:
        wait_for(lambda: session.requests._reading is not None, "it is being read")
        session.clients.submit(session.requests.close).result(timeout=30)


def test_the_directory_may_go_or_become_another(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = Session(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()
    second = Session(tmp_path / "a")
    first.close()
    assert is_served(tmp_path / "a") and not is_served(tmp_path / "b")
    second.close()
    gone = Session(tmp_path / "b")
    (tmp_path / "b" / SOCKET).unlink()
    (tmp_path / "b").rmdir()
    gone.close()


def test_who_waits_when_the_session_ends_knows_that_nothing_was_done(session: Session) -> None:
    answers = [session.ask() for _ in range(3)]
    assert session.woken.acquire(timeout=30)
    session.requests.close()
    assert [answer.result() for answer in answers] == [None, None, None]
    assert session.asked == [] and not (session.directory / SOCKET).exists()


def test_a_session_that_dies_on_the_way(tmp_path: Path) -> None:
    """After it has begun it is not known how far it came."""
    child = os.fork()
    if not child:

        def die(request: Request, begun: Callable[[], None]) -> Outcome:
            begun()
            os._exit(0)

        requests = Requests(tmp_path, die, lambda: None)
        while True:
            requests.serve()
    try:
        wait_for(lambda: is_served(tmp_path), "it listens")
        with pytest.raises(TargetError, match="may be partly that of the epoch"):
            ask(tmp_path, REQUEST)
    finally:
        os.waitpid(child, 0)
    # What it has left does not answer, and is no hindrance.
    assert (tmp_path / SOCKET).exists() and ask(tmp_path, REQUEST) is None
    made = Session(tmp_path)
    assert is_served(tmp_path)
    made.close()
