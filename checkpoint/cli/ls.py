"""uffdtrack ls DIR"""

from __future__ import annotations

from pathlib import Path

import click

from checkpoint import report
from checkpoint.chain import Chain
from checkpoint.cli.common import DIRECTORY, json_option
from checkpoint.cli.tree import list_tree
from checkpoint.epoch import EpochRow
from checkpoint.files import malformed
from checkpoint.tree import is_tree


@click.command("ls")
@click.argument("directory", type=DIRECTORY)
@json_option
def command(directory: Path, as_json: bool) -> None:
    """List the epochs of a chain; bases are marked with a star."""
    if is_tree(directory):
        list_tree(directory, as_json)
        return
    chain = Chain(directory)
    rows = []
    files = [chain.open(epoch) for epoch in chain.epochs]
    first = max((i for i, file in enumerate(files) if file.compacted), default=0)
    for file in files[first:]:
        if as_json:
            report.emit_json({**file.facts.row, "digest": file.digest, "file": file.path.name})
        else:
            with malformed(file.path):
                rows.append(EpochRow.of_json(file.facts.row))
    if not as_json:
        report.emit_table(report.EPOCH_COLUMNS, report.epoch_rows(rows))
    chain.check_holes(files[first].epoch)
