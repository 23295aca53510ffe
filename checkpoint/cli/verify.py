"""uffdtrack verify DIR"""

from __future__ import annotations

from pathlib import Path

import click

from checkpoint import report
from checkpoint.branches import ends_of, is_branched
from checkpoint.chain import Chain
from checkpoint.cli.common import DIRECTORY, json_option, key_option
from checkpoint.cli.tree import verify_tree
from checkpoint.tree import is_tree
from checkpoint.view import check_all_deltas


@click.command("verify", short_help="Check every byte of a chain.")
@click.argument("directory", type=DIRECTORY)
@key_option
@json_option
def command(directory: Path, key: bytes, as_json: bool) -> None:
    """Check every byte of a chain, and that each epoch follows its parent."""
    if is_tree(directory):
        verify_tree(directory, key, as_json)
        return
    files = Chain(directory).verify(key)
    check_all_deltas(files)
    first, last = files[0].epoch, files[-1].epoch
    branched = is_branched(files)
    if as_json:
        report.emit_json(
            {
                "schema": "uffdtrack/verify/1", "directory": str(directory), "first": first,
                "last": last, "epochs": len(files), "keyed": bool(key), "ok": True,
                **({"ends": ends_of(files)} if branched else {}),
            }
        )  # fmt: skip
    else:
        each = ", and each follows the one before" if len(files) > 1 else ""
        if branched:
            each = f", and each follows its parent; none follows {report.several(ends_of(files))}"
        report.emit(f"{directory}: {report.span(first, last)}: whole{each}")
