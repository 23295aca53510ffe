"""The socket of a replicating process, by which `status` and `switchover` ask it.

A request is one line of JSON, and so is each answer: progress, if there is any, then the outcome or an error.
Each client has a thread, so a switchover that takes its time keeps nobody from asking for the status.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from checkpoint.replication.links.local import LocalListener, check_user
from checkpoint.replication.status import StatusRow, SwitchoverRow
from checkpoint.rollback.request import Failure
from checkpoint.row import Row
from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError, PermissionDeniedError, TargetError, UffdtrackError

LONGEST = 1 << 16
"""Bytes of a line."""
SECONDS = 5.0
"""For so long a client may take for its request, and for reading an answer."""
_MOST = 16
"""Clients at a time."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ControlRequest(Row):
    """What is asked for: "status" or "switchover"."""

    schema: ClassVar[str] = "uffdtrack/control-request/1"

    what: str


@dataclass(frozen=True, slots=True)
class ProgressRow(Row):
    """How far a switchover has come, for people."""

    schema: ClassVar[str] = "uffdtrack/control-progress/1"

    text: str


def run_directory() -> Path:
    """Where the sockets of this user's processes are."""
    if not os.geteuid():
        return Path("/run/uffdtrack")
    place = os.environ.get("XDG_RUNTIME_DIR")
    return Path(place) / "uffdtrack" if place else Path(f"/tmp/uffdtrack-{os.geteuid()}")


def _made(directory: Path) -> Path:
    """Raises: PermissionDeniedError: it cannot be made, or is another user's."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.stat(follow_symlinks=False)
    except OSError as error:
        raise PermissionDeniedError(f"cannot make {directory}: {error.strerror}") from error
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionDeniedError(f"others may write to {directory}: remove it, or chmod 700 it")
    return directory


class Control(Closing):
    """Answers until `close`, in threads of its own."""

    def __init__(
        self,
        status: Callable[[], StatusRow],
        switchover: Callable[[Progress], SwitchoverRow],
        directory: Path | None = None,
    ) -> None:
        """Args:
            status: called in any thread, at any time.
            switchover: does one, in a thread of ours, and says how far it is by the function that it gets. It
                raises an UffdtrackError if it could not. There is one at a time.
            directory: instead of `run_directory()`.

        Raises:
            PermissionDeniedError, LinkError: there can be no socket.
        """
        self._status = status
        self._switchover = switchover
        self._busy = threading.Lock()
        self._clients: dict[threading.Thread, socket.socket] = {}
        self._changed = threading.Lock()
        place = _made(directory or run_directory())
        self._listener = LocalListener(place / f"{os.getpid()}.{id(self):x}")
        self._ends = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._take_all, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more requests. Answers that are under way have `SECONDS`."""
        if self._ends < 0:
            return
        os.eventfd_write(self._ends, 1)
        self._thread.join()
        self._listener.close()
        with self._changed:
            clients = dict(self._clients)
        until = time.monotonic() + SECONDS
        for thread, connection in clients.items():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
            thread.join(max(0.0, until - time.monotonic()))
        os.close(self._ends)
        self._ends = -1

    # -- the threads ------------------------------------------------------------------------------

    def _take_all(self) -> None:
        poll = select.poll()
        poll.register(self._listener.socket, select.POLLIN)
        poll.register(self._ends, select.POLLIN)
        while not any(fd == self._ends for fd, _ in poll.poll()):
            with contextlib.suppress(OSError, RuntimeError):  # it has gone; no thread can be made
                self._take(self._listener.socket.accept()[0])

    def _take(self, connection: socket.socket) -> None:
        connection.settimeout(SECONDS)
        thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
        with self._changed:
            if len(self._clients) >= _MOST:
                connection.close()
                return
            self._clients[thread] = connection
        try:
            thread.start()
        except RuntimeError:
            self._forget(thread)
            raise

    def _forget(self, thread: threading.Thread) -> None:
        with self._changed:
            self._clients.pop(thread).close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            answer = self._answer(connection).to_json()
        except UffdtrackError as error:
            answer = Failure.of(error).to_json()
        except Exception as error:
            answer = Failure(TargetError.__name__, f"it failed: {type(error).__name__}: {error}").to_json()
        _send(connection, answer)
        self._forget(threading.current_thread())

    def _answer(self, connection: socket.socket) -> Row:
        request = _read(connection)  # first: who closes with something unread may lose its answer
        check_user(connection)
        if request.what == "status":
            return self._status()
        if not self._busy.acquire(blocking=False):
            raise InvalidInputError("a switchover is under way already")
        try:
            return self._switchover(lambda text: _send(connection, ProgressRow(text).to_json()))
        finally:
            self._busy.release()


def _read(connection: socket.socket) -> ControlRequest:
    """One line.

    Raises:
        InvalidInputError: it is no request.
    """
    deadline = time.monotonic() + SECONDS
    line = b""
    while not line.endswith(b"\n") and len(line) < LONGEST:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            part = connection.recv(LONGEST - len(line))
        except OSError as error:
            raise InvalidInputError("the request did not come in time") from error
        if not part or time.monotonic() > deadline:
            break
        line += part
    connection.settimeout(SECONDS)
    try:
        stored = json.loads(line)
        if stored["schema"] == ControlRequest.schema:
            request = ControlRequest.of_json(stored)
            if request.what in ("status", "switchover"):
                return request
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InvalidInputError("the process is of another version of uffdtrack, and does not know the request")


def _send(connection: socket.socket, row: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # it has gone
        connection.sendall(json.dumps(row).encode() + b"\n")
