"""A session's socket: a thread takes what others ask for, the session's own thread does it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoint.rollback.request import (
    LONGEST,
    SOCKET,
    Begun,
    Failure,
    Request,
    outcome_row,
    peer_of,
    socket_path,
)
from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError, PermissionDeniedError

Work = Callable[[Request, Callable[[], None]], Any]
SECONDS = 5.0
"""For so long a client may take for its request, and for reading the answer."""


class Requests(Closing):
    """Takes one request at a time. `serve` does what is asked for, in the thread that calls it.

    Without a socket (a file system that has none) and without threads (RLIMIT_NPROC) it takes none.
    """

    def __init__(
        self,
        directory: Path,
        work: Work,
        wake: Callable[[], None],
        row_of: Callable[[int, Any], dict[str, Any]] = outcome_row,
    ) -> None:
        """Args:
        directory: of the chain, which this process has locked.
        work: does a request, and calls a function right before it touches anything.
        wake: called in any thread when there is a request.
        row_of: makes a row of the pid that was asked for and of what the work returns.
        """
        self._directory = directory
        self._work = work
        self._wake = wake
        self._row_of = row_of
        self._reading: socket.socket | None = None
        self._waiting: tuple[socket.socket, Request] | None = None
        self._changed = threading.Condition()
        self._ends = os.eventfd(0, os.EFD_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError, RuntimeError):
            self._bind()
            thread = threading.Thread(target=self._take_all, daemon=True)
            thread.start()
            self._thread = thread

    def _bind(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET, dir_fd=self._place)  # of one that was killed: we have the lock
        os.fchmod(self._listener.fileno(), 0o600)  # the mode of the file that bind(2) makes
        with socket_path(self._directory) as path:
            self._listener.bind(path)
        self._listener.listen()

    def asked(self) -> bool:
        """Whether a request waits for `serve`."""
        return self._waiting is not None

    def serve(self) -> None:
        """Do what was asked for, if something was."""
        with self._changed:
            if not self._waiting:
                return
            connection, request = self._waiting
        if not _has_gone(connection):
            try:
                outcome = self._work(request, lambda: _send(connection, Begun().to_json()))
                answer = self._row_of(request.pid, outcome)
            except Exception as error:
                answer = Failure.of(error).to_json()
            _send(connection, answer)
        with self._changed:
            self._waiting = None
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more requests. Who waits gets no answer, and knows that nothing was done."""
        if self._ends < 0:
            return
        if self._thread:
            with contextlib.suppress(OSError):  # the directory has gone, or may not be written any more
                os.unlink(SOCKET, dir_fd=self._place)
            with self._changed:
                self._waiting = None
                if self._reading:
                    with contextlib.suppress(OSError):
                        self._reading.shutdown(socket.SHUT_RDWR)
                os.eventfd_write(self._ends, 1)
                self._changed.notify_all()
            self._thread.join()
        self._listener.close()
        for fd in (self._place, self._ends):
            os.close(fd)
        self._ends = -1

    # -- the thread -------------------------------------------------------------------------------

    def _take_all(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._ends, select.POLLIN)
        while not any(fd == self._ends for fd, _ in poll.poll()):
            with contextlib.suppress(OSError), self._listener.accept()[0] as connection:
                self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        """Let the session do what one client asks for, and wait until it has."""
        with self._changed:
            self._reading = connection
        try:
            request = _read(connection)  # first: who closes with something unread may lose its answer
            _check_peer(connection)
        except Exception as error:
            _send(connection, Failure.of(error).to_json())
            return
        finally:
            with self._changed:
                self._reading = None
        if not request:
            return
        with self._changed:
            self._waiting = connection, request
        self._wake()
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)


def _check_peer(connection: socket.socket) -> None:
    """Raises: PermissionDeniedError: it is another user's process."""
    if peer_of(connection) not in (0, os.geteuid()):
        raise PermissionDeniedError("the session is of another user. Run as that one, or as root")


def _read(connection: socket.socket) -> Request | None:
    """One line; None: the client has gone.

    Raises:
        InvalidInputError: it is no request.
    """
    deadline = time.monotonic() + SECONDS
    line = b""
    while not line.endswith(b"\n") and len(line) < LONGEST:
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            part = connection.recv(LONGEST - len(line))
        except TimeoutError as error:
            raise InvalidInputError("the request did not come in time") from error
        if not part:
            break
        line += part
    connection.settimeout(SECONDS)
    if not line:
        return None
    try:
        stored = json.loads(line)
        if stored["schema"] == Request.schema:
            return Request.of_json(stored)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InvalidInputError("the session is of another version of uffdtrack, and does not know the request")


def _has_gone(connection: socket.socket) -> bool:
    """Whether the client has closed the connection."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def _send(connection: socket.socket, row: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # it has gone
        connection.sendall(json.dumps(row).encode() + b"\n")
