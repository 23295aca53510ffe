"""uffdtrack status [NAME|ADDRESS]"""

from __future__ import annotations

import click

from checkpoint import report
from checkpoint.cli.common import json_option, say
from checkpoint.replication.asking import Process, chosen, processes
from checkpoint.replication.status import StatusRow

_COLUMNS = (
    "name", "role", "state", "address", "peer", "pid", "since", "taken", "sent", "acknowledged", "whole",
    "stored", "lag", "lag bytes", "lag time", "held", "released",
)  # fmt: skip


@click.command("status", short_help="What replicates on this host, and how far it is.")
@click.argument("which", metavar="[NAME|ADDRESS]", required=False)
@json_option
def command(which: str | None, as_json: bool) -> None:
    """List the replications of this host that are this user's, or those of a name or an address.

    Taken, sent, acknowledged, whole (at a standby) and stored (on disk) are numbers of epochs; lag is what is
    taken and not acknowledged, held is output that waits for that.
    """
    found = processes()
    if which is not None:
        found = chosen(found, which)
    rows = [one.row for one in found if one.row]
    if as_json:
        for row in rows:
            report.emit_json(row)
    elif rows:
        report.emit_table(_COLUMNS, [_cells(row) for row in rows], left=5)
    else:
        report.emit("nothing replicates here")
    for one in found:
        _remark(one)


def _remark(one: Process) -> None:
    if not one.row:
        say(f"warning: process {one.pid} does not answer")
    elif one.row.error:
        where = f"{one.row.directory}: " if one.row.directory else ""
        say(f"warning: {one.row.role} {one.row.name}: {where}{one.row.error}")


def _cells(row: StatusRow) -> list[str]:
    return [
        row.name,
        row.role,
        row.state,
        row.address,
        row.peer or "-",
        f"{row.pid}",
        report.moment(row.since_ns).replace(tzinfo=None).isoformat(" ", "seconds"),
        *(
            "-" if number is None else f"{number}"
            for number in (row.taken, row.sent, row.acknowledged, row.whole, row.stored, row.lag_epochs)
        ),
        "-" if row.lag_bytes is None else report.size(row.lag_bytes),
        "-" if row.lag_us is None else report.duration(row.lag_us),
        "-" if row.output_held is None else report.size(row.output_held),
        "-" if row.released is None else f"{row.released}",
    ]
