"""Asks the replicating processes of this host, by their sockets (control.py)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.errors import LinkError
from checkpoint.replication.control import (
    LONGEST,
    SECONDS,
    ControlRequest,
    Progress,
    ProgressRow,
    run_directory,
)
from checkpoint.replication.links.address import parse
from checkpoint.replication.links.local import connect_local, remove_dead
from checkpoint.replication.status import StatusRow, SwitchoverRow
from checkpoint.rollback.request import Failure
from uffdtrack.errors import InvalidInputError, UffdtrackError


@dataclass(frozen=True, slots=True)
class Process:
    """A process that replicates.

    Attributes:
        path: of its socket.
        row: what it says; None: it does not answer.
    """

    path: Path
    row: StatusRow | None

    @property
    def pid(self) -> int:
        return int(self.path.name.split(".")[0])


def processes(directory: Path | None = None) -> list[Process]:
    """The replicating processes of this user, by their numbers. Sockets of dead ones are removed."""
    found = []
    for path in _sockets(directory or run_directory()):
        row = None
        try:
            row = StatusRow.of_json(_last_answer(path, "status", SECONDS, lambda text: None))
        except (UffdtrackError, KeyError, TypeError):
            with contextlib.suppress(OSError):
                if remove_dead(path):
                    continue
        found.append(Process(path, row))
    return sorted(found, key=lambda one: one.pid)


def _sockets(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.name.split(".")[0].isdecimal()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidInputError(f"cannot read {directory}: {error.strerror}") from error


def chosen(found: list[Process], which: str) -> list[Process]:
    """Those of a name or an address.

    Raises:
        LinkError: there is none.
    """
    names = {which}
    with contextlib.suppress(InvalidInputError):
        names.add(str(parse(which)))
    matching = [one for one in found if one.row and names & {one.row.name, one.row.address}]
    if matching:
        return matching
    silent = "".join(f"; process {one.pid} does not answer" for one in found if not one.row)
    there = ", ".join(sorted({one.row.name for one in found if one.row})) or "nothing"
    raise LinkError(f"nothing replicates as {which} here: `uffdtrack status` has {there}{silent}")


def one_to_switch(found: list[Process]) -> Process:
    """The active of what matches, else its standby.

    Raises:
        InvalidInputError: there are several.
    """
    actives = [one for one in found if one.row and one.row.role == "active"] or found
    if len(actives) > 1:
        pids = ", ".join(str(one.pid) for one in actives)
        raise InvalidInputError(f"processes {pids} match: give the address or the name of one")
    return actives[0]


def switch_over(path: Path, progress: Progress) -> SwitchoverRow:
    """Ask a process for a switchover, and wait for it.

    Raises:
        UffdtrackError: what the process raises, with its own text.
        LinkError: it has ended before it said how it went.
    """
    try:
        return SwitchoverRow.of_json(_last_answer(path, "switchover", None, progress))
    except (KeyError, TypeError) as error:
        raise LinkError("the process is of another version of uffdtrack") from error


def _last_answer(path: Path, what: str, seconds: float | None, progress: Progress) -> dict[str, Any]:
    """Raises: UffdtrackError: what the process raises; LinkError: it does not answer."""
    for answer in _answers(path, what, seconds):
        schema = answer.get("schema")
        if schema == Failure.schema:
            raise Failure.of_json(answer).to_error()
        if schema != ProgressRow.schema:
            return answer
        progress(str(answer.get("text")))
    raise LinkError(f"the process at {path} has ended on the way: `uffdtrack status` says what is left")


def _answers(path: Path, what: str, seconds: float | None) -> Iterator[dict[str, Any]]:
    with connect_local(path) as connection:
        connection.settimeout(seconds)
        try:
            connection.sendall(json.dumps(ControlRequest(what).to_json()).encode() + b"\n")
            with connection.makefile("rb") as stream:
                while line := stream.readline(LONGEST):
                    answer = json.loads(line)
                    if isinstance(answer, dict):
                        yield answer
        except TimeoutError as error:
            raise LinkError(f"the process at {path} does not answer within {seconds:g} s") from error
        except (OSError, ValueError, RecursionError):
            return  # cut short
