"""Argument types and options that several verbs share."""

from __future__ import annotations

import contextlib
import os
import re
import select
from pathlib import Path
from typing import Any

import click

from checkpoint.chain import parse_place
from checkpoint.files import translate_read
from uffdtrack import MAX_STOP
from uffdtrack.errors import InvalidInputError

KEY_MOST = 64
KEY_SECONDS = 5
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

SHORTEST_STOP = 0.1
"""Seconds."""


class Time(click.ParamType[float]):
    """100ms, 2s, 1.5m."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", str(value).strip().lower())
        if found and not found[2]:
            self.fail(f"{value!r} lacks a unit: {value}ms or {value}s?", param, ctx)
        if not found or found[2] not in _UNITS:
            self.fail(f"{value!r} is not a time such as 100ms, 2s or 5m", param, ctx)
        seconds = float(found[1]) * _UNITS[found[2]]
        if not 0 < seconds <= 366 * 86400:
            self.fail(f"{value!r} is out of range (more than 0, at most a year)", param, ctx)
        return seconds


class Place(click.ParamType[tuple[Path, int | None]]):
    """DIR@N, or DIR for the last epoch."""

    name = "dir@n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Path, int | None]:
        if isinstance(value, tuple):
            return value
        try:
            return parse_place(str(value))
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)


class Bound(Time):
    """A limit for the stop of a process that it does not reach when all is well."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = super().convert(value, param, ctx)
        if seconds < SHORTEST_STOP:
            self.fail(f"{value!r} is too short: at least {SHORTEST_STOP * 1000:g}ms", param, ctx)
        return seconds


PID = click.IntRange(1, 1 << 22)
PID.name = "process number"
DIRECTORY = click.Path(path_type=Path, readable=False)  # that it is shows when it is read, as exit code 4

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def _read_key(ctx: click.Context, param: click.Parameter, value: Path | None) -> bytes:
    if value is None:
        return b""
    try:
        key = _read_some(value, KEY_MOST + 2).strip()
    except PermissionError as error:
        raise translate_read(error, value) from error
    except OSError as error:
        raise click.BadParameter(f"cannot read {value}: {error.strerror or error}") from error
    if not 1 <= len(key) <= KEY_MOST:
        holds = f"more than {KEY_MOST}" if key else "no"
        raise click.BadParameter(f"{value} holds {holds} bytes; a key has 1 to {KEY_MOST}")
    return key


def _read_some(path: Path, most: int) -> bytes:
    """The first bytes of a file or a pipe (a shell's <(...)), whose writer may never write the rest.

    Raises:
        OSError: it cannot be read, or a pipe brings nothing for `KEY_SECONDS`.
    """
    found = b""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while len(found) < most:
            if not poll.poll(KEY_SECONDS * 1000):
                raise TimeoutError(f"nothing came for {KEY_SECONDS} s")
            part = os.read(fd, most - len(found))
            if not part:
                break
            found += part
    finally:
        os.close(fd)
    return found


key_option = click.option(
    "--key-file",
    "key",
    type=click.Path(path_type=Path, readable=False),
    callback=_read_key,
    help="A file with the key (1 to 64 bytes) of the images' digests.",
)


max_stop_option = click.option(
    "--max-stop", type=Bound(), default=f"{MAX_STOP:g}s", show_default=True,
    help="Never stop the process for longer, whatever happens.",
)  # fmt: skip


def say(text: str) -> None:
    """Print to stderr, if we can."""
    with contextlib.suppress(OSError):
        click.echo(f"uffdtrack: {text}", err=True)
