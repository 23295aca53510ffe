"""uffdtrack show DIR@N"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from checkpoint import report
from checkpoint.chain import Chain
from checkpoint.cli.common import Place, json_option
from checkpoint.cli.tree import show_tree
from checkpoint.files import malformed
from checkpoint.image import EpochFile
from checkpoint.objects import increment, resolve
from checkpoint.tree import is_tree
from uffdtrack.runs import between


def region_rows(file: EpochFile) -> list[dict[str, Any]]:
    rows = []
    for r in file.regions:
        held = between(file.pages, r.start, r.end)
        rows.append(
            {
                "start": r.start, "end": r.end, "permissions": r.permissions, "offset": r.offset,
                "name": r.name, "pages": held.stop - held.start, "stored": r.stored,
                "kind": r.kind, "left_out": r.left_out,
            }
        )  # fmt: skip
    return rows


@click.command("show", short_help="One epoch in detail.")
@click.argument("place", metavar="DIR@N", type=Place())
@json_option
def command(place: tuple[Path, int | None], as_json: bool) -> None:
    """Show one epoch: mappings, pages per mapping, threads, timings, digest. The digest is not checked."""
    directory, epoch = place
    if is_tree(directory):
        show_tree(directory, epoch, as_json)
        return
    chain = Chain(directory)
    file = chain.open(epoch)
    facts, row = file.facts, file.facts.row
    threads = [
        {"tid": t.tid, "rip": int.from_bytes(t.regs[128:136], "little"),
         "rsp": int.from_bytes(t.regs[152:160], "little")}
        for t in file.threads
    ]  # fmt: skip
    regions = region_rows(file)
    if as_json:
        keys = ("process", "kernel_threads", "files", "parent", "parent_epoch", "keyed", "reset")
        base = facts.objects.closed is None
        files = [file] if base else chain.view(file.epoch, alone=True).sources
        with malformed(file.path):
            objects = increment(None, resolve(f.facts.objects for f in files))
        stored = facts.to_json()
        report.emit_json(
            {
                **row,
                "schema": "uffdtrack/show/1",
                "digest": file.digest,
                **{k: stored[k] for k in keys if k in stored},
                **objects.to_json(),
                "thread_list": threads,
                "region_list": regions,
            }
        )
        return
    process = facts.process
    report.emit(f"epoch     {row['epoch']}{' (base)' if row['base'] else ''} of {directory}")
    report.emit(f"process   {process.pid} {process.cmdline or process.comm}")
    for line in report.described(row):
        report.emit(line)
    report.emit(f"digest    {file.digest}{' (keyed)' if facts.keyed else ''}")
    of = f", epoch {file.parent_epoch}" if facts.parent_epoch is not None else ""
    report.emit(f"parent    {file.parent or 'none'}{of}")
    report.emit()
    report.emit_table(
        ("thread", "rip", "rsp"),
        ([str(t["tid"]), f"{t['rip']:#x}", f"{t['rsp']:#x}"] for t in threads),
    )
    report.emit()
    report.emit_table(
        ("mapping", "perm", "name", "size", "pages"),
        (
            [f"{r['start']:x}-{r['end']:x}", r["permissions"], r["name"],
             report.size(r["end"] - r["start"]), str(r["pages"]) if r["stored"] else "-"]
            for r in regions
        ),
        left=3,
    )  # fmt: skip
    for r in regions:
        if r["left_out"]:
            click.echo(f"left out  {r['start']:x}-{r['end']:x} {r['name']}: {r['left_out']}")
