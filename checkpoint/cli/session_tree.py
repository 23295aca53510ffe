"""The session of a whole tree of processes, for `checkpoint --children` and `run --children`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click

from checkpoint import report
from checkpoint.cli.options import Options
from checkpoint.cli.session import (
    Target,
    begin,
    check_first,
    choose_engine,
    farewell_on_error,
    needed,
    raise_limit,
    size_of,
)
from checkpoint.cli.take import Progress, take_epochs
from checkpoint.cli.waits import ServingWait, TreeWait
from checkpoint.epoch import TreeRow
from checkpoint.rollback.requests import Requests
from checkpoint.rollback.tree import tree_outcome_row
from checkpoint.rollback.tree_in_session import TreeSessionRollback
from checkpoint.tree import TreeWriter
from checkpoint.tree_session import TreeSession
from uffdtrack import adopt_orphans
from uffdtrack.errors import InvalidInputError

children_option = click.option(
    "--children", is_flag=True,
    help="Take all descendants too, each as a chain of its own below the directory, all at one instant.",
)  # fmt: skip


def run_tree_on(process: Target, lifeline: int, options: Options) -> bool:
    """A whole session on a tree, with its output; returns whether all its processes have ended.

    Args:
        process: the first one. If we start it, orphans of the tree become children of ours, and so we
            keep finding them.
    """
    if options.keep:
        raise InvalidInputError("--keep is of one process: it does not go with --children")
    traits = choose_engine(options)
    directory = needed(options)
    check_first(process)
    with ExitStack() as stack:
        writer = stack.enter_context(TreeWriter(directory, options.key, options.force))
        adopter = 0
        if not isinstance(process, int):
            adopt_orphans()
            adopter = os.getpid()
        pid = begin(process)
        raise_limit()  # each process takes about nine descriptors of ours
        interrupt = TreeWait(lifeline)
        session = TreeSession(
            pid, writer, traits.name, options.max_dirty, interrupt.seen, adopter, options.follow_shared
        )
        interrupt.session = stack.enter_context(session)
        work = TreeSessionRollback(session, directory)
        with (
            farewell_on_error(f"the processes of the tree of {pid} run on", session.ended),
            interrupt,
            Progress() as progress,
            Requests(directory, work, interrupt.wake, tree_outcome_row) as requests,
        ):
            wait = ServingWait(requests, session, interrupt.wait).wait
            taken = take_epochs(session, options, interrupt, wait, _warnings, progress.show)
        taken.ended = taken.ended or session.ended()

    how = "have ended" if taken.ended else "run on, untracked"
    taken.conclude(lambda summary: text(pid, directory, summary), f"the processes of the tree of {pid} {how}")
    return taken.ended


def _warnings(row: TreeRow) -> Iterator[str]:
    for process in row.processes or []:
        for warning in process.warnings:
            comm = process.member.comm if process.member else "?"
            yield f"process {process.pid} ({comm}): {warning}"


def text(pid: int, directory: Path, summary: report.Summary) -> str:
    return (
        f"tree of process {pid}: {summary.span} in {directory}, at most {summary.processes} processes, "
        f"{size_of(summary, directory)}; {summary.pauses}"
        + (f"; {summary.partial} epochs lack a process (left_out)" if summary.partial else "")
    )
