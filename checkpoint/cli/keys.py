"""uffdtrack keys DIR [HOST ...]"""

from __future__ import annotations

from pathlib import Path

import click

from checkpoint import report
from checkpoint.cli.common import DIRECTORY, json_option
from checkpoint.replication.links.keys import make_pair


@click.command("keys", short_help="Make the keys of two hosts that replicate.")
@click.argument("directory", type=DIRECTORY)
@click.argument("hosts", nargs=-1, metavar="[ACTIVE STANDBY]")
@click.option("--force", is_flag=True, help="Replace a pair that is there.")
@json_option
def command(directory: Path, hosts: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Make DIR/active.pem and DIR/standby.pem: a key each, its certificate, and the CA that signed both.

    ACTIVE and STANDBY are the two hosts, as the other one connects to them: names or numeric addresses,
    several with commas between. Without them the pair is for two processes of this host. Either file can
    listen and connect, so hosts may change their roles. Copy each file to its host, and delete it here.

    The CA's own key is not kept: nobody can make a third certificate, and a new pair is new at both hosts.
    """
    for row in make_pair(directory, hosts, force):
        if as_json:
            report.emit_json(row)
        else:
            report.emit(f"{row.file}, for {', '.join(row.hosts)}, until {row.expires[:10]}")
