"""`ls`, `show`, `verify` and `rollback` of a tree of processes."""

from __future__ import annotations

from pathlib import Path

from checkpoint import report
from checkpoint.cli.common import say
from checkpoint.directory import Lock
from checkpoint.epoch import TreeRow
from checkpoint.files import malformed
from checkpoint.rollback.request import Request, asked, fingerprint_of_all, is_served
from checkpoint.rollback.tree import TreeOutcome, rollback_tree, tree_outcome_of, tree_outcome_row
from checkpoint.tree import Tree, TreeEpoch


def list_tree(directory: Path, as_json: bool) -> None:
    """`ls` of a tree."""
    entries = Tree(directory).entries()
    if as_json:
        for entry in entries:
            about = {"digest": entry.digest, "file": entry.path.name, "processes": entry.facts.processes}
            report.emit_json({**entry.facts.row, **about, **report.parent(entry.facts)})
        return
    rows = []
    for entry in entries:
        with malformed(entry.path):
            rows.append(TreeRow.of_json(entry.facts.row))
    shown = zip(report.epoch_rows(rows), entries, strict=True)
    columns = [*report.EPOCH_COLUMNS, "processes", "left out"]
    cells = [[*row, str(len(entry.processes)), str(len(entry.left_out))] for row, entry in shown]
    parents = ["" if e.facts.parent_epoch is None else str(e.facts.parent_epoch) for e in entries]
    if any(parents):
        columns.insert(1, "after")
        cells = [[row[0], after, *row[1:]] for row, after in zip(cells, parents, strict=True)]
    report.emit_table(columns, cells)


def _each(entries: list[TreeEpoch]) -> str:
    if len(entries) == 1:
        return ""
    branched = any(entry.facts.parent_epoch is not None for entry in entries)
    return f", and each follows {'its parent' if branched else 'the one before'}"


def show_tree(directory: Path, epoch: int | None, as_json: bool) -> None:
    """`show` of a tree: which epochs of which processes belong together."""
    entry = Tree(directory).open(epoch)
    if as_json:
        report.emit_json({**entry.facts.row, "schema": "uffdtrack/show-tree/1", "digest": entry.digest,
                          "parent": entry.parent, **report.parent(entry.facts),
                          "processes": entry.facts.processes})  # fmt: skip
        return
    row = entry.facts.row
    report.emit(f"epoch     {entry.epoch} of {directory}, a tree of {len(entry.processes)} processes")
    for line in report.described(row):
        report.emit(line)
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
            f"{directory}: {report.span(first, last)} of a tree: whole{_each(entries)}; "
            f"so are {files} files of {processes} processes"
        )


def rollback_tree_to(
    pid: int, place: tuple[Path, int | None], key: bytes, anyway: bool, max_stop: float, as_json: bool
) -> None:
    """`rollback` of a tree."""
    outcome = by_session(pid, place, key, anyway, max_stop)
    if outcome is None:
        with Lock(place[0]):
            entry = open_verified(place, key)
            outcome = rollback_tree(pid, entry, entry.views(), anyway, max_stop)
    for warning in outcome.warnings:
        say(f"warning: {warning}")
    if as_json:
        report.emit_json(tree_outcome_row(pid, outcome))
    else:
        done = outcome.processes.values()
        report.emit(
            f"{len(done)} processes of the tree are back at epoch {outcome.epoch}: "
            f"{sum(o.pages for o in done)} pages written, {sum(o.mappings for o in done)} mappings changed, "
            f"{len(outcome.ended)} processes ended, paused {report.duration(outcome.pause_us)}"
        )


def by_session(
    pid: int, place: tuple[Path, int | None], key: bytes, anyway: bool, max_stop: float
) -> TreeOutcome | None:
    """Let the session do it that follows the tree. None: there is none on that directory."""
    if not is_served(place[0]):
        return None
    entry = open_verified(place, key)
    files = fingerprint_of_all(entry.views())
    answer = asked(place[0], Request(pid, entry.epoch, entry.digest, files, anyway, max_stop))
    return tree_outcome_of(answer) if answer else None


def open_verified(place: tuple[Path, int | None], key: bytes) -> TreeEpoch:
    """One epoch of a tree, of which every byte is checked first."""
    tree = Tree(place[0])
    tree.verify(key)
    return tree.open(place[1])
