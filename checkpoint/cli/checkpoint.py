"""uffdtrack checkpoint PID"""

from __future__ import annotations

from typing import Any

import click

from checkpoint.cli.common import PID, run_on, session_options


@click.command("checkpoint")
@click.argument("pid", type=PID)
@session_options
def command(pid: int, **options: Any) -> None:
    """Take a base and then small checkpoints of process PID while it runs.

    Without --count and --duration it goes on until Ctrl-C or until the process ends. The process runs
    on, untracked, however this ends.
    """
    run_on(pid, **options)
