"""uffdtrack switchover NAME|ADDRESS"""

from __future__ import annotations

import click

from checkpoint import report
from checkpoint.cli.common import json_option, say
from checkpoint.replication.asking import chosen, one_to_switch, processes, switch_over


@click.command("switchover", short_help="Let the standby take over now; nothing is lost.")
@click.argument("which", metavar="NAME|ADDRESS")
@json_option
def command(which: str, as_json: bool) -> None:
    """Move a guest that is replicated to its standby, and say how long it stood.

    The process that is asked is the active if it runs on this host, else the standby. The guest goes on
    where it was: nothing is lost, and no output is repeated. If the standby cannot take it, it runs on at the
    active.
    """
    asked = one_to_switch(chosen(processes(), which))
    row = switch_over(asked.path, say)
    if as_json:
        report.emit_json(row)
    else:
        report.emit(
            f"{row.name} runs at {row.runs_at}, from epoch {row.epoch} on; it stood for "
            f"{report.duration(row.stood_us)}"
        )
