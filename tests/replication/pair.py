"""An active and a standby in one process, over a real Unix socket."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoint.errors import StandbyAwayError
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.fence import Command, FileLock
from checkpoint.replication.following import DirectFollowing, Following
from checkpoint.replication.links.address import Address
from checkpoint.replication.replica import Replica
from checkpoint.replication.route import DirectRoute, Route
from checkpoint.replication.standby import StandbyEdge
from checkpoint.replication.store import Store
from checkpoint.session import R, Taker
from tests.helpers import DEADLINE

SILENCE = 30.0
"""Seconds: no test waits for it."""


class Told(list[str]):
    """What an end has told its user."""

    def __call__(self, text: str) -> None:
        self.append(text)


@contextmanager
def standby(
    socket: Path,
    directory: Path,
    fence: FileLock | Command | None = None,
    force: bool = False,
    deadline: float = SILENCE,
) -> Iterator[StandbyEdge]:
    """A standby that listens."""
    following = DirectFollowing(Address("unix", path=str(socket)), None, False, fence)
    with standby_by(following, directory, force, deadline) as edge:
        yield edge


@contextmanager
def standby_by(
    following: Following, directory: Path, force: bool = False, deadline: float = SILENCE
) -> Iterator[StandbyEdge]:
    with Replica(Store(directory, force), b"") as replica:
        edge = StandbyEdge(following, "standby", replica, deadline, lambda: None, Told())
        with edge:
            edge.start()
            yield edge
        assert edge.failure is None


@contextmanager
def active(socket: Path, kind: str = "vm", lock: FileLock | None = None, **more: Any) -> Iterator[ActiveEdge]:
    """An active that connects, again and again."""
    route = DirectRoute(Address("unix", path=str(socket)), None, False, lock)
    with active_by(route, kind, **more) as edge:
        yield edge


@contextmanager
def active_by(route: Route, kind: str = "vm", **more: Any) -> Iterator[ActiveEdge]:
    about = {"name": "active", "run": secrets.token_hex(8), "kind": kind, "keyed": False}
    with ActiveEdge(route, about, b"", SILENCE, lambda: None, lambda text: None, **more) as edge:
        edge.start()
        edge.await_open()
        yield edge
    assert edge.failure is None


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def take(session: Taker[R]) -> R:
    """Take an epoch, as soon as a standby is there."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return session.take()
        except StandbyAwayError:
            assert time.monotonic() < deadline, "no standby takes epochs"
            time.sleep(0.001)
