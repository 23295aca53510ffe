"""uffdtrack status [NAME|ADDRESS]"""

from __future__ import annotations

import datetime

import click

from checkpoint import report
from checkpoint.cli.common import json_option, say
from checkpoint.replication.asking import Process, chosen, processes
from checkpoint.replication.status import StatusRow

_COLUMNS = (
    "name", "role", "state", "since", "peer", "pid", "taken", "sent", "acknowledged", "stored", "lag",
    "bytes", "time", "held", "address",
)  # fmt: skip


@click.command("status", short_help="What replicates on this host, and how far it is.")
@click.argument("which", metavar="[NAME|ADDRESS]", required=False)
@json_option
def command(which: str | None, as_json: bool) -> None:
    """List the replications of this host that are this user's, or those of a name or an address.

    Taken, sent, acknowledged and stored (on disk) are numbers of epochs; lag is how many are taken and not
    acknowledged, with their bytes and since when; held is output that waits for that. Of several standbys
    at a broker "next" is the one that may take over.
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
    since = report.moment(row.since_ns).replace(tzinfo=None)
    acknowledged = row.acknowledged if row.role == "active" else row.whole
    return [
        row.name,
        row.role,
        row.state + (", next" if row.successor else ""),
        since.isoformat(" ", "seconds") if since.date() != datetime.date.today() else f"{since:%H:%M:%S}",
        row.peer or "-",
        f"{row.pid}",
        *(
            "-" if number is None else f"{number}"
            for number in (row.taken, row.sent, acknowledged, row.stored, row.lag_epochs)
        ),
        "-" if row.lag_bytes is None else report.size(row.lag_bytes),
        "-" if row.lag_us is None else report.duration(row.lag_us),
        "-" if row.output_held is None else report.size(row.output_held),
        row.address,
    ]
