"""The socket by which a session is asked for a rollback."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from checkpoint.errors import ImageError, RollbackRefusedError
from checkpoint.rollback.request import SOCKET, Request, ask, connect, is_served
from checkpoint.rollback.requests import Requests
from checkpoint.rollback.work import Outcome
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

    def work(self, request: Request) -> Outcome:
        self.asked.append(request)
        if self.error:
            raise self.error
        return Outcome(request.epoch, pages=7, warnings=["\udcff"])

    def ask(self, request: Request = REQUEST) -> Future[Outcome | None]:
        return self.clients.submit(ask, self.directory, request)

    def serve(self) -> None:
        assert self.woken.acquire(timeout=30)
        assert self.requests.serve()

    def close(self) -> None:
        self.requests.close()
        self.clients.shutdown()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path)
    yield made
    made.close()


def test_an_answer(session: Session) -> None:
    assert not session.requests.serve()
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
        assert not session.requests.serve()
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

        def die(request: Request) -> Outcome:
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
