"""uffdtrack checkpoint PID"""

from __future__ import annotations

import click

from checkpoint.cli.common import PID, max_stop_option
from checkpoint.cli.options import Options
from checkpoint.cli.replicate_options import WhereTo, replicate_options
from checkpoint.cli.session import process_options, run_on
from checkpoint.cli.session_tree import children_option, run_tree_on
from checkpoint.cli.worker import become_worker
from uffdtrack.errors import InvalidInputError


@click.command("checkpoint", short_help="Checkpoint a running process.")
@click.argument("pid", type=PID)
@children_option
@process_options
@replicate_options
@max_stop_option
def command(pid: int, children: bool, options: Options, replicate: WhereTo | None, max_stop: float) -> None:
    """Take a base and then small checkpoints of process PID while it runs.

    Without --count and --duration it goes on until Ctrl-C or until the process ends. The process runs
    on, untracked, however this ends. With --children it is the whole tree of processes (docs/trees.md).
    """
    if replicate and children:
        raise InvalidInputError("--children does not go with --replicate")
    lifeline = become_worker(options.engine, options.max_dirty, max_stop)
    if replicate:
        from checkpoint.cli.replicate_process import replicate_process

        replicate_process(pid, lifeline, options, replicate)
        return
    (run_tree_on if children else run_on)(pid, lifeline, options)
