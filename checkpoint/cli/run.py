"""uffdtrack run -- COMMAND"""

from __future__ import annotations

import os
import subprocess
from typing import Any

import click

from checkpoint.cli.common import say, session_options
from checkpoint.cli.session import become_worker, run_on
from uffdtrack.errors import InvalidInputError


@click.command("run", context_settings={"ignore_unknown_options": True})
@session_options
@click.argument("argv", metavar="COMMAND [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(argv: tuple[str, ...], **options: Any) -> None:
    """Start COMMAND and checkpoint it, as `checkpoint` does.

    Needs no privilege. When the session ends before the command, the command runs on. So it is started in
    a session of its own, which the terminal's Ctrl-C does not reach, and reads nothing from the terminal.
    """
    lifeline = become_worker(options["engine"], options["max_dirty"], options.pop("max_stop"))
    if run_on(lambda: start(argv), lifeline, **options):
        say(f"{argv[0]} was checkpointed to its end")


def start(argv: tuple[str, ...]) -> int:
    """The pid of the command.

    Two readers of one terminal take each other's lines, and the shell is the second one when we have
    ended. With a pipe or a file as our input, the command gets that.

    Raises:
        InvalidInputError: there is no such program.
    """
    stdin = subprocess.DEVNULL if os.isatty(0) else None
    try:
        return subprocess.Popen(argv, stdin=stdin, start_new_session=True).pid
    except OSError as error:
        raise InvalidInputError(f"cannot run {argv[0]}: {error.strerror}") from error
