"""uffdtrack diff DIR@A DIR@B"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from checkpoint import report
from checkpoint.chain import Chain
from checkpoint.cli.common import Place, json_option, key_option
from checkpoint.compare import differences
from checkpoint.tree import Tree, is_tree
from checkpoint.view import View
from uffdtrack.errors import InvalidInputError


def open_view(place: tuple[Path, int | None], key: bytes) -> View:
    """The memory of one epoch; checks its chain first."""
    if is_tree(place[0]):
        entry = Tree(place[0]).open(place[1])
        example = f"{place[0] / entry.processes[0].directory}@{entry.processes[0].epoch}"
        raise InvalidInputError(
            f"{place[0]} is of a tree of processes: name one of them, such as {example} "
            f"(uffdtrack show {place[0]}@{entry.epoch})"
        )
    chain = Chain(place[0])
    chain.open(place[1])
    view = chain.view(place[1], chain.verify(key))
    for source in view.sources:
        if source.path.parent != place[0]:
            source.verify(key)  # shared memory that another process of a tree has stored
    return view


@click.command("diff", short_help="Which pages differ between two epochs.")
@click.argument("a", metavar="DIR@A", type=Place())
@click.argument("b", metavar="DIR@B", type=Place())
@key_option
@json_option
def command(a: tuple[Path, int | None], b: tuple[Path, int | None], key: bytes, as_json: bool) -> None:
    """Show which pages differ between two epochs, per mapping, by contents."""
    rows: list[dict[str, Any]] = [
        {
            "schema": "uffdtrack/diff/1",
            "start": d.region.start,
            "end": d.region.end,
            "permissions": d.region.permissions,
            "name": d.region.name,
            "state": d.state,
            "pages": len(d.changed),
            "page_list": d.changed.tolist(),
        }
        for d in differences(open_view(a, key), open_view(b, key))
    ]
    if as_json:
        for row in rows:
            report.emit_json(row)
        return
    report.emit_table(
        ("mapping", "perm", "name", "state", "pages"),
        (
            [f"{r['start']:x}-{r['end']:x}", r["permissions"], r["name"],
             {"both": "changed"}.get(r["state"], r["state"]), str(r["pages"])]
            for r in rows
        ),
        left=4,
    )  # fmt: skip
    report.emit(f"{sum(r['pages'] for r in rows)} pages differ in {len(rows)} mappings")
