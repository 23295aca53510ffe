"""What several verbs share: argument types, options, how a session is run."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.live import Live

from checkpoint import report
from checkpoint.chain import ChainWriter, parse_place
from checkpoint.cycle import Plan, Session, run_session
from checkpoint.targets.process import ProcessTarget, check_target, proc_read, warnings_for
from uffdtrack import choose_engine, parse_maps, probe
from uffdtrack.errors import InvalidInputError

F = TypeVar("F", bound=Callable[..., Any])
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Time(click.ParamType[float]):
    """100ms, 2s, 1.5m, or a plain number of seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", str(value).strip().lower())
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


PID = click.IntRange(1, 1 << 22)
DIRECTORY = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def _read_key(ctx: click.Context, param: click.Parameter, value: Path | None) -> bytes:
    if value is None:
        return b""
    try:
        key = value.read_bytes().strip()
    except OSError as error:
        raise click.BadParameter(f"cannot read {value}: {error.strerror}") from error
    if not 1 <= len(key) <= 64:
        raise click.BadParameter(f"{value} holds {len(key)} bytes; a key has 1 to 64")
    return key


key_option = click.option(
    "--key-file",
    "key",
    type=click.Path(path_type=Path),
    callback=_read_key,
    help="A file with the key (1 to 64 bytes) of the images' digests.",
)


def session_options(function: F) -> F:
    """The options that `checkpoint` and `run` have in common."""
    for option in reversed(
        [
            click.option(
                "-o", "--output", "directory", type=DIRECTORY, required=True,
                help="Directory of the chain; it is made where it is missing.",
            ),
            click.option(
                "--every", type=Time(), default="1s", show_default=True,
                help="Time from one epoch to the next.",
            ),
            click.option(
                "--count", type=click.IntRange(min=1), help="Stop after N epochs, the base included."
            ),
            click.option("--duration", type=Time(), help="Stop after this time."),
            click.option(
                "--engine", type=click.Choice(["auto", "scan"]), default="auto", show_default=True,
                help="How writes are tracked.",
            ),
            click.option("--force", is_flag=True, help="Delete a chain that is there already."),
            key_option,
            json_option,
        ]
    ):  # fmt: skip
        function = option(function)
    return function


def say(text: str) -> None:
    click.echo(f"uffdtrack: {text}", err=True)


class Interrupt:
    """Turns SIGINT, SIGTERM and SIGHUP into the end of a wait; what runs is finished first."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old: dict[int, Any] = {}
        self.seen = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        os.write(self._writer, b"x")

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, seconds: float) -> bool:
        """True: interrupted, or the target has ended."""
        if self.seen:
            return True
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def target_ended(self) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))


class Progress:
    """One line on stderr, on a terminal only."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False, markup=False)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._on = console.is_terminal
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self._on:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._live.stop()

    def show(self, row: dict[str, Any]) -> None:
        if self._on:
            rate = (row["epoch"] + 1) / max(time.monotonic() - self._started, 1e-3)
            self._live.update(
                f"epoch {row['epoch']}   {row['pages']} pages   {report.size(row['bytes'])}   "
                f"pause {report.duration(row['pause_us'])}   {rate:.1f} epochs/s",
                refresh=True,
            )


def run_on(
    pid: int,
    directory: Path,
    every: float,
    count: int | None,
    duration: float | None,
    engine: str,
    force: bool,
    key: bytes,
    as_json: bool,
) -> bool:
    """A whole session on one process, with its output; returns whether the process has ended."""
    traits = choose_engine(engine, probe())
    rows: list[dict[str, Any]] = []

    def emit(row: dict[str, Any]) -> None:
        rows.append(row)
        if as_json:
            report.emit_json(row)
        progress.show(row)

    check_target(pid)
    with ChainWriter(directory, key, force) as chain, ProcessTarget(pid) as target:
        maps = proc_read(pid, "maps").decode(errors="surrogateescape")
        for warning in warnings_for(pid, parse_maps(maps)):
            say(f"warning: {warning}")
        with Interrupt(target.pidfd) as interrupt, Progress() as progress:
            session = Session(target, chain, traits, lambda: interrupt.seen)
            ended = run_session(session, Plan(every, count, duration), interrupt.wait, emit, say)
            ended = ended or interrupt.target_ended()
    if not rows:
        say("interrupted before the base was whole: no epoch was taken")
    elif not as_json:
        total = report.size(sum(row["bytes"] for row in rows))
        click.echo(
            f"process {pid}: epochs 0 to {rows[-1]['epoch']} in {directory}, {total}; "
            + report.pause_summary(rows)
        )
    say(f"process {pid} has ended" if ended else f"process {pid} runs on, untracked")
    return ended
