"""uffdtrack run -- COMMAND"""

from __future__ import annotations

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

    Needs no privilege. When the session ends before the command, the command runs on.
    """
    lifeline = become_worker(options["engine"], options["max_dirty"])
    try:
        child = subprocess.Popen(argv)
    except OSError as error:
        raise InvalidInputError(f"cannot run {argv[0]}: {error.strerror}") from error
    if run_on(child.pid, lifeline, **options):
        say(f"{argv[0]} (process {child.pid}) was checkpointed to its end")
