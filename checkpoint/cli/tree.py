"""`ls`, `show`, `verify` and `rollback` of a tree of processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from checkpoint import report
from checkpoint.cli.common import say
from checkpoint.directory import Lock
from checkpoint.epoch import TreeRow
from checkpoint.files import malformed
from checkpoint.rollback.tree import rollback_tree
from checkpoint.tree import Tree


def list_tree(directory: Path, as_json: bool) -> None:
    """`ls` of a tree."""
    entries = Tree(directory).entries()
    if as_json:
        for entry in entries:
            about = {"digest": entry.digest, "file": entry.path.name, "processes": entry.facts.processes}
            report.emit_json({**entry.facts.row, **about})
        return
    rows = []
    for entry in entries:
        with malformed(entry.path):
            rows.append(TreeRow.of_json(entry.facts.row))
    shown = zip(report.epoch_rows(rows), entries, strict=True)
    report.emit_table(
        (*report.EPOCH_COLUMNS, "processes", "left out"),
        ([*row, str(len(entry.processes)), str(len(entry.left_out))] for row, entry in shown),
    )


def show_tree(directory: Path, epoch: int | None, as_json: bool) -> None:
    """`show` of a tree: which epochs of which processes belong together."""
    entry = Tree(directory).open(epoch)
    if as_json:
        report.emit_json({**entry.facts.row, "schema": "uffdtrack/show-tree/1", "digest": entry.digest,
                          "parent": entry.parent, "processes": entry.facts.processes})  # fmt: skip
        return
    row = entry.facts.row
    report.emit(f"epoch     {entry.epoch} of {directory}, a tree of {len(entry.processes)} processes")
    report.emit(f"pause     {report.duration(row['pause_us'])}")
    report.emit(f"digest    {entry.digest}{' (keyed)' if entry.facts.keyed else ''}")
    for process in entry.left_out:
        report.emit(f"left out  process {process.pid} ({process.comm}): {process.reason}")
    report.emit()
    report.emit_table(
        ("process", "epoch"),
        ([f"{p.pid} {p.comm}", f"{directory / p.directory}@{p.epoch}"] for p in entry.processes),
        left=2,
    )


def verify_tree(directory: Path, key: bytes, as_json: bool) -> None:
    """`verify` of a tree."""
    entries, files = Tree(directory).verify(key)
    first, last = entries[0].epoch, entries[-1].epoch
    processes = len({p.directory for entry in entries for p in entry.processes})
    if as_json:
        report.emit_json(
            {
                "schema": "uffdtrack/verify/1", "directory": str(directory), "first": first, "last": last,
                "epochs": len(entries), "keyed": bool(key), "ok": True, "processes": processes,
                "files": files,
            }
        )  # fmt: skip
    else:
        report.emit(
            f"{directory}: {report.span(first, last)} of a tree: whole, and each follows the one before; "
            f"so do {files} files of {processes} processes"
        )


def rollback_tree_to(
    pid: int, place: tuple[Path, int | None], key: bytes, anyway: bool, max_stop: float, as_json: bool
) -> None:
    """`rollback` of a tree."""
    with Lock(place[0]):
        tree = Tree(place[0])
        tree.verify(key)
        entry = tree.open(place[1])
        outcome = rollback_tree(pid, entry, entry.views(), anyway, max_stop)
    for warning in outcome.warnings:
        say(f"warning: {warning}")
    if as_json:
        report.emit_json({"schema": "uffdtrack/tree-rollback/1", "pid": pid, **dataclasses.asdict(outcome)})
    else:
        done = outcome.processes.values()
        report.emit(
            f"{len(done)} processes of the tree are back at epoch {outcome.epoch}: "
            f"{sum(o.pages for o in done)} pages written, {sum(o.mappings for o in done)} mappings changed, "
            f"{len(outcome.ended)} processes ended, paused {report.duration(outcome.pause_us)}"
        )
