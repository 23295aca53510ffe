"""uffdtrack checkpoint PID"""

from __future__ import annotations

from typing import Any

import click

from checkpoint.cli.common import PID, session_options
from checkpoint.cli.session import become_worker, run_on
from checkpoint.cli.tree import children_option, run_tree_on


@click.command("checkpoint", short_help="Checkpoint a running process.")
@click.argument("pid", type=PID)
@children_option
@session_options
def command(pid: int, children: bool, **options: Any) -> None:
    """Take a base and then small checkpoints of process PID while it runs.

    Without --count and --duration it goes on until Ctrl-C or until the process ends. The process runs
    on, untracked, however this ends. With --children it is the whole tree of processes (docs/trees.md).
    """
    lifeline = become_worker(options["engine"], options["max_dirty"], options.pop("max_stop"))
    (run_tree_on if children else run_on)(pid, lifeline, **options)
