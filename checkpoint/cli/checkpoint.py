"""uffdtrack checkpoint PID"""

from __future__ import annotations

from dataclasses import replace

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
@click.option(
    "--hold-net", is_flag=True,
    help="With --replicate, as root: hold the packets of the process until the standby has the epoch. It has "
    "to be in a network namespace of its own, and the kernel to have sch_plug (docs/fault-tolerance.md).",
)  # fmt: skip
@max_stop_option
def command(
    pid: int, children: bool, options: Options, replicate: WhereTo | None, hold_net: bool, max_stop: float
) -> None:
    """Take a base and then small checkpoints of process PID while it runs.

    Without --count and --duration it goes on until Ctrl-C or until the process ends. The process runs
    on, untracked, however this ends. With --children it is the whole tree of processes (docs/trees.md).
    """
    if replicate and children:
        raise InvalidInputError("--children does not go with --replicate")
    if hold_net and not replicate:
        raise InvalidInputError("--hold-net goes with --replicate")
    lifeline = become_worker(options.engine, options.max_dirty, max_stop)
    if replicate:
        from checkpoint.cli.replicate_process import replicate_process

        replicate_process(pid, lifeline, options, replace(replicate, hold_net=hold_net))
        return
    (run_tree_on if children else run_on)(pid, lifeline, options)
