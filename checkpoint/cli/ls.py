"""uffdtrack ls DIR"""

from __future__ import annotations

from pathlib import Path

import click

from checkpoint import report
from checkpoint.branches import is_branched
from checkpoint.chain import Chain
from checkpoint.cli.common import DIRECTORY, json_option
from checkpoint.cli.tree import list_tree
from checkpoint.epoch import EpochRow
from checkpoint.files import malformed
from checkpoint.image import EpochFile
from checkpoint.tree import is_tree


@click.command("ls")
@click.argument("directory", type=DIRECTORY)
@json_option
def command(directory: Path, as_json: bool) -> None:
    """List the epochs of a chain; bases are marked with a star. No digests are checked.

    Where a session has gone on from an earlier epoch after a rollback, a column names that one.
    """
    if is_tree(directory):
        list_tree(directory, as_json)
        return
    chain = Chain(directory)
    rows = []
    files = chain.present()
    for file in files:
        if as_json:
            about = {"digest": file.digest, "file": file.path.name, "file_bytes": file.size}
            report.emit_json({**file.facts.row, **about, **report.parent(file.facts)})
        else:
            with malformed(file.path):
                rows.append(EpochRow.of_json(file.facts.row))
    if not as_json:
        columns, cells = list(report.EPOCH_COLUMNS), list(report.epoch_rows(rows))
        at = columns.index("bytes") + 1
        columns.insert(at, "file")
        for row, file in zip(cells, files, strict=True):
            row.insert(at, report.size(file.size))
        if is_branched(files):
            columns.insert(1, "after")
            for row, follows in zip(cells, _after(files), strict=True):
                row.insert(1, follows)
        report.emit_table(columns, cells)
    chain.check_holes(files)


def _after(files: list[EpochFile]) -> list[str]:
    """Which epoch each follows, where that is not the one before it in the list; "-" for none."""
    found = []
    before: int | None = None
    for file in files:
        parent = file.parent_epoch
        found.append("" if parent == before else "-" if parent is None else str(parent))
        before = file.epoch
    return found
