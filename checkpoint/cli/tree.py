"""How `checkpoint --children` and `run --children` hold a session of a whole tree of processes."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from checkpoint import report
from checkpoint.chain import Lock
from checkpoint.cli.common import say
from checkpoint.cli.session import LOOK, Interrupt, Progress, poll_fds, raise_limit
from checkpoint.epoch import TreeRow
from checkpoint.files import malformed
from checkpoint.schedule import Plan, run_session
from checkpoint.targets.refusals import check_living_target
from checkpoint.tree import Tree, TreeWriter
from checkpoint.tree_rollback import rollback_tree
from checkpoint.tree_session import TreeSession
from uffdtrack import adopt_orphans, choose_for_process, probe
from uffdtrack.errors import OutputError, TargetRefusedError

children_option = click.option(
    "--children", is_flag=True,
    help="Take all descendants too, each as a chain of its own below the directory, all at one instant.",
)  # fmt: skip


class TreeWatch(Interrupt):
    """Interrupted, or the end of all processes: `lifeline` is readable when the waiting process has died."""

    def __init__(self, lifeline: int) -> None:
        super().__init__()
        self._lifeline = lifeline
        self.session: TreeSession | None = None

    def wait(self, seconds: float) -> bool:
        """Also ends at a limit of dirty pages. True: interrupted, or all processes have ended."""
        assert self.session
        end = time.monotonic() + seconds
        full = {fd for fd in self.session.fds if fd >= 0}
        while not self.session.ended():
            # One that has ended is news only when it was the last.
            living = {m.target.pidfd for m in self.session.members if not m.target.ended()}
            left = max(0.0, end - time.monotonic())
            # Who is not followed may be the last.
            ready = poll_fds(
                left if living else min(left, LOOK), self._reader, self._lifeline, *full, *living
            )
            if ready - full - living:
                return True
            if ready & full or (not ready and time.monotonic() >= end):
                return False
        return True

    def seen(self) -> bool:
        return bool(poll_fds(0, self._reader, self._lifeline))


def run_tree_on(
    process: int | Callable[[], int],
    lifeline: int,
    directory: Path,
    every: float,
    count: int | None,
    duration: float | None,
    engine: str,
    max_dirty: int | None,
    force: bool,
    key: bytes,
    as_json: bool,
) -> bool:
    """A whole session on a tree, with its output; returns whether all its processes have ended.

    Args:
        process: the pid of the first, or what starts it, called when the directory is ours. Then orphans of
            the tree become children of ours, and so stay in sight.
    """
    traits = choose_for_process(engine, probe(), max_dirty)
    rows: list[TreeRow] = []
    untold: OutputError | None = None

    def emit(row: TreeRow) -> None:
        rows.append(row)
        for process in row.processes or []:
            for warning in process.warnings:
                comm = process.member.comm if process.member else "?"
                say(f"warning: process {process.pid} ({comm}): {warning}")
        if as_json:
            report.emit_json(row)
        progress.show(row)

    if process == os.getppid():
        raise TargetRefusedError("a process cannot checkpoint itself")
    if isinstance(process, int):
        check_living_target(process)
    with ExitStack() as stack:
        writer = stack.enter_context(TreeWriter(directory, key, force))
        adopter = 0
        if isinstance(process, int):
            pid = process
        else:
            adopt_orphans()
            pid, adopter = process(), os.getpid()
        check_living_target(pid)
        raise_limit()  # each process takes about nine descriptors of ours
        watch = TreeWatch(lifeline)
        session = TreeSession(pid, writer, traits.name, max_dirty, watch.seen, adopter)
        watch.session = stack.enter_context(session)
        with watch, Progress() as progress:
            try:
                ended = run_session(session, Plan(every, count, duration), watch.wait, emit, say)
            except OutputError as error:
                ended, untold = False, error  # the epoch is safe; nobody reads of it
        ended = ended or session.ended()
    if not rows:
        say("interrupted before the base was whole: no epoch was taken")
    elif not as_json and not untold:
        try:
            report.emit(_summary(pid, directory, rows))
        except OutputError as error:
            untold = error
    say(
        f"the processes of the tree of {pid} have ended"
        if ended
        else f"the processes of the tree of {pid} run on, untracked"
    )
    if untold:
        raise untold
    return ended


def list_tree(directory: Path, as_json: bool) -> None:
    """`ls` of a tree."""
    entries = Tree(directory).entries()
    if as_json:
        for entry in entries:
            about = {"digest": entry.digest, "file": entry.path.name, "processes": entry.processes}
            report.emit_json({**entry.meta["row"], **about})
        return
    rows = []
    for entry in entries:
        with malformed(entry.path):
            rows.append(TreeRow.of_json(entry.meta["row"]))
    shown = zip(report.epoch_rows(rows), entries, strict=True)
    report.emit_table(
        (*report.EPOCH_COLUMNS, "processes", "left out"),
        ([*row, str(len(entry.processes)), str(len(entry.left_out))] for row, entry in shown),
    )


def show_tree(directory: Path, epoch: int | None, as_json: bool) -> None:
    """`show` of a tree: which epochs of which processes belong together."""
    entry = Tree(directory).open(epoch)
    if as_json:
        report.emit_json({**entry.meta["row"], "schema": "uffdtrack/show-tree/1", "digest": entry.digest,
                          "parent": entry.parent, "processes": entry.processes})  # fmt: skip
        return
    row = entry.meta["row"]
    report.emit(f"epoch     {entry.epoch} of {directory}, a tree of {len(entry.processes)} processes")
    report.emit(f"pause     {report.duration(row['pause_us'])}")
    report.emit(f"digest    {entry.digest}{' (keyed)' if entry.meta['keyed'] else ''}")
    for process in entry.left_out:
        report.emit(f"left out  process {process['pid']} ({process['comm']}): {process['reason']}")
    report.emit()
    report.emit_table(
        ("process", "epoch"),
        ([f"{p['pid']} {p['comm']}", f"{directory / p['directory']}@{p['epoch']}"] for p in entry.processes),
        left=2,
    )


def verify_tree(directory: Path, key: bytes, as_json: bool) -> None:
    """`verify` of a tree."""
    entries, files = Tree(directory).verify(key)
    first, last = entries[0].epoch, entries[-1].epoch
    processes = len({p["directory"] for entry in entries for p in entry.processes})
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


def _summary(pid: int, directory: Path, rows: list[TreeRow]) -> str:
    total = report.size(sum(row.bytes for row in rows))
    most = max(len(row.processes or []) for row in rows)
    partial = sum(bool(row.left_out) for row in rows)
    return (
        f"tree of process {pid}: {report.span(0, rows[-1].epoch)} in {directory}, "
        f"at most {most} processes, {total}; {report.pause_summary(rows)}"
        + (f"; {partial} epochs lack a process (left_out)" if partial else "")
    )
