"""uffdtrack compact DIR --before N"""

from __future__ import annotations

from pathlib import Path

import click

from checkpoint import report
from checkpoint.chain import Chain
from checkpoint.cli.common import DIRECTORY, json_option, key_option
from checkpoint.directory import Lock
from checkpoint.export import compact
from checkpoint.tree import is_tree
from uffdtrack.errors import InvalidInputError


@click.command("compact", short_help="Merge old epochs into a new base.")
@click.argument("directory", type=DIRECTORY)
@click.option(
    "--before", type=click.IntRange(min=0), required=True,
    help="The epoch that becomes the base; older ones are merged into it.",
)  # fmt: skip
@key_option
@json_option
def command(directory: Path, before: int, key: bytes, as_json: bool) -> None:
    """Merge the epochs before N into epoch N, which becomes the base of the chain.

    Epochs that do not come from N stay, with all that they come from.
    """
    if is_tree(directory) or is_tree(directory.absolute().parent):
        raise InvalidInputError(f"{directory} belongs to a tree of processes, whose epochs are not merged")
    chain = Chain(directory)
    chain.open(before)
    with Lock(directory):
        removed = compact(Chain(directory), before, key)
        stay = [number for number in Chain(directory).epochs if number < before]
    if as_json:
        report.emit_json(
            {
                "schema": "uffdtrack/compact/1", "directory": str(directory), "base": before,
                "removed": removed, **({"stay": stay} if stay else {}),
            }
        )  # fmt: skip
    else:
        merged = f"{report.several(removed)} merged into it" if removed else "nothing to merge"
        if stay:
            merged += f"; {report.several(stay)} stay, since not all later ones come from it"
        report.emit(f"{directory}: epoch {before} is the base; {merged}")
