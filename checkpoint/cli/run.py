"""uffdtrack run -- COMMAND"""

from __future__ import annotations

import os
import subprocess

import click

from checkpoint.cli.common import max_stop_option, say
from checkpoint.cli.options import Options
from checkpoint.cli.session import process_options, run_on
from checkpoint.cli.session_tree import children_option, run_tree_on
from checkpoint.cli.worker import become_worker
from checkpoint.rollback.differences import signal_names
from uffdtrack import Kept
from uffdtrack.errors import InvalidInputError, TargetGoneError


@click.command(
    "run", short_help="Start a command and checkpoint it.", context_settings={"ignore_unknown_options": True}
)
@children_option
@process_options
@max_stop_option
@click.argument("argv", metavar="COMMAND [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(argv: tuple[str, ...], children: bool, options: Options, max_stop: float) -> int:
    """Start COMMAND and checkpoint it, as `checkpoint` does.

    Needs no privilege. If the command ends within the session, we return its exit status (128 + the signal's
    number, if a signal ended it). If the session ends before the command, the command runs on. So it has
    a session of its own, which the terminal's Ctrl-C does not reach, and reads nothing from the
    terminal.
    """
    lifeline = become_worker(options.engine, options.max_dirty, max_stop)
    started: list[Kept] = []

    def begin() -> int:
        started.append(start(argv))
        return started[0].pid

    try:
        ended = (run_tree_on if children else run_on)(begin, lifeline, options)
    except TargetGoneError:
        if not started:
            raise
        say("the command has ended before a base was whole: no epoch was taken")
        ended = True
    return result(argv[0], started[0].status()) if ended else 0


def start(argv: tuple[str, ...]) -> Kept:
    """Start the command.

    Two readers of one terminal take each other's lines, and the shell is the second one when we have
    ended. If our input is a pipe or a file, the command gets that.

    Raises:
        InvalidInputError: there is no such program.
    """
    try:
        return Kept(argv, subprocess.DEVNULL if os.isatty(0) else None)
    except OSError as error:
        raise InvalidInputError(f"cannot run {argv[0]}: {error.strerror}") from error


def result(name: str, status: int | None) -> int:
    """The exit status of a command that has ended, as a shell reports it."""
    if status is None:
        return 0
    if status < 0:
        say(f"{name} was ended by {signal_names(1 << -status - 1)[0]} (signal {-status})")
        return 128 - status
    say(f"{name} has ended with exit status {status}")
    return status
