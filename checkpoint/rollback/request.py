"""Ask the session that follows a process for a rollback, by a socket in the directory of its chain."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from checkpoint.errors import ImageError
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.own_process import PARTLY
from checkpoint.row import Row
from checkpoint.view import View
from uffdtrack.errors import TargetError, UffdtrackError

SOCKET = ".session"
LONGEST = 1 << 16
"""Bytes of a line."""
LAST = -1
_CREDENTIALS = struct.Struct("3i")  # struct ucred (unix(7))


@dataclass(frozen=True, slots=True)
class Request(Row):
    """What a session is asked for.

    Attributes:
        epoch: `LAST`: the last one, of those that a session keeps in memory.
        digest, files: of the epoch, and of all files that its memory is in (`fingerprint`), as they were
            verified; "" of an epoch in memory.
        anyway, max_stop: see `rollback`.
    """

    schema: ClassVar[str] = "uffdtrack/rollback-request/1"

    pid: int
    epoch: int
    digest: str
    files: str
    anyway: bool
    max_stop: float


@dataclass(frozen=True, slots=True)
class Begun(Row):
    """The session goes to work: if nothing follows, it is not known how far it came."""

    schema: ClassVar[str] = "uffdtrack/rollback-begun/1"


@dataclass(frozen=True, slots=True)
class Failure(Row):
    """An error of the session's; `error` is the name of its class."""

    schema: ClassVar[str] = "uffdtrack/error/1"

    error: str
    text: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        if isinstance(error, UffdtrackError):
            return cls(type(error).__name__, str(error))
        return cls(TargetError.__name__, f"rollback failed: {type(error).__name__}: {error}")

    def to_error(self) -> UffdtrackError:
        kind = _errors().get(self.error, TargetError)
        error = kind.__new__(kind)
        Exception.__init__(error, self.text)
        return error


def _errors() -> dict[str, type[UffdtrackError]]:
    found: dict[str, type[UffdtrackError]] = {}
    kinds: list[type[UffdtrackError]] = [UffdtrackError, ImageError]
    while kinds:
        kind = kinds.pop()
        found[kind.__name__] = kind
        kinds += kind.__subclasses__()
    return found


def outcome_row(pid: int, outcome: Outcome) -> dict[str, Any]:
    """The line of `--json`."""
    return {"schema": "uffdtrack/rollback/1", "pid": pid, **dataclasses.asdict(outcome)}


def fingerprint(view: View) -> str:
    """Tells the files of a view from others that have their names later."""
    files = sorted((source.path.name, source.digest, source.identity) for source in view.sources)
    return hashlib.blake2b(json.dumps(files).encode(), digest_size=16).hexdigest()


def fingerprint_of_all(views: dict[int, View]) -> str:
    """The same of several views, by pid."""
    files = sorted((pid, fingerprint(view)) for pid, view in views.items())
    return hashlib.blake2b(json.dumps(files).encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def socket_path(directory: Path) -> Iterator[str]:
    """A path of the socket that is short enough for an address (unix(7)), in the block."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


def connect(directory: Path) -> socket.socket | None:
    """A connection to the session on a chain, None if there is none that listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with contextlib.suppress(OSError):  # none has been there, or it was killed
        with socket_path(directory) as path:
            connection.connect(path)
        if peer_of(connection) in (0, os.geteuid()):
            return connection
    connection.close()
    return None


def peer_of(connection: socket.socket) -> int:
    """The user id of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def is_served(directory: Path) -> bool:
    """Whether a session is there that can be asked."""
    connection = connect(directory)
    if connection:
        connection.close()
    return connection is not None


def ask(directory: Path, request: Request) -> Outcome | None:
    """Ask the session on a chain for a rollback, and wait for it. See `asked`."""
    answer = asked(directory, request)
    return outcome_of(answer) if answer else None


def outcome_of(answer: Mapping[str, Any]) -> Outcome:
    """Read what `outcome_row` has made."""
    return Outcome(**{part.name: answer[part.name] for part in dataclasses.fields(Outcome)})


def asked(directory: Path, request: Request) -> dict[str, Any] | None:
    """Ask a session for a rollback, and wait for it.

    Returns:
        The row of its outcome. None: there is no session, or it has ended before it began; nothing was
        touched.

    Raises:
        UffdtrackError: what the session raises, with its own text.
        TargetError: it has died on the way.
    """
    connection = connect(directory)
    if not connection:
        return None
    begun = False
    with connection, connection.makefile("rb") as stream:
        try:
            connection.sendall(json.dumps(request.to_json()).encode() + b"\n")
            for line in stream:
                answer = json.loads(line)
                if answer["schema"] == Failure.schema:
                    raise Failure.of_json(answer).to_error()
                if answer["schema"] != Begun.schema:
                    return dict(answer)
                begun = True
        except (OSError, ValueError):
            pass  # cut short
    if not begun:
        return None
    state = PARTLY.replace("is", "may be", 1)
    raise TargetError(f"the session has died while it rolled process {request.pid} back; {state}")
