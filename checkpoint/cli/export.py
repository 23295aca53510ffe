"""uffdtrack export DIR@N -o FILE"""

from __future__ import annotations

from pathlib import Path

import click

from checkpoint import report
from checkpoint.cli.common import Place, json_option, key_option
from checkpoint.cli.diff import open_view
from checkpoint.export import export


@click.command("export", short_help="Write an epoch as one core, for gdb.")
@click.argument("place", metavar="DIR@N", type=Place())
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False, readable=False), required=True
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@key_option
@json_option
def command(place: tuple[Path, int | None], output: Path, force: bool, key: bytes, as_json: bool) -> None:
    """Write the whole memory and all threads of an epoch as one ELF core, for gdb."""
    view = open_view(place, key)
    size = export(view, output, force)
    if as_json:
        report.emit_json(
            {
                "schema": "uffdtrack/export/1", "epoch": view.epoch.epoch, "file": str(output),
                "bytes": size, "pages": len(view.pages),
            }
        )  # fmt: skip
    else:
        report.emit(f"epoch {view.epoch.epoch}: {len(view.pages)} pages, {report.size(size)} in {output}")
