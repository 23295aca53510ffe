"""The session of one process, for `checkpoint` and `run`."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import click

from checkpoint import report
from checkpoint.chain import epoch_numbers, on_disk
from checkpoint.chain_writer import ChainWriter
from checkpoint.cli.common import say
from checkpoint.cli.options import Options, session_options
from checkpoint.cli.take import Progress, take_epochs
from checkpoint.cli.waits import ChildWait, ServingWait, Wait
from checkpoint.epoch import EpochRow
from checkpoint.kept_in_memory import kept_here
from checkpoint.recent import RecentSink
from checkpoint.rollback.in_session import SessionRollback
from checkpoint.rollback.requests import Requests
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from checkpoint.targets.refusals import check_living_target
from checkpoint.tree import is_tree
from uffdtrack import PROCESS_ENGINES, Process, Traits, choose_for_process, descriptors, probe, read_maps
from uffdtrack.errors import InvalidInputError, TargetRefusedError, UffdtrackError

process_options = session_options(
    "Directory of the chain; it is made where it is missing.",
    False,
    ["auto", *PROCESS_ENGINES],
    "auto",
    "docs/engines.md",
    "Take an epoch as soon as so many pages are dirty, too.",
    "Track anonymous and System V shared memory that only the process maps, or the tree, instead of "
    "comparing all of it: for hundreds of MiB. A process waits for us in some calls on it (docs/limits.md).",
    "Keep the last K epochs in memory, for rollbacks by this session, and write no files (docs/keep.md).",
)
Target = int | Callable[[], int]
"""A pid, or a function that starts the process; we call it when we have locked the directory."""


def raise_limit() -> None:
    """Allow more open files: ring takes two descriptors a thread. A command started later inherits this."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def attach(pid: int, engine: str, max_dirty: int | None, follow_shared: bool = False) -> ProcessTarget:
    """Attach, with "scan" if "ring" cannot follow each thread."""
    raise_limit()
    target = ProcessTarget(pid, engine, max_dirty, follow_shared)
    lacking = target.space.short_of
    if not lacking:
        return target
    if max_dirty:
        say(
            f"warning: engine ring cannot follow all threads, too little: {lacking}; what the others write "
            "does not count for --max-dirty"
        )
        return target
    target.close()
    say(f"warning: engine ring cannot follow all threads, too little: {lacking}; the scan engine is used")
    return ProcessTarget(pid, "scan", follow_shared=follow_shared)


def choose_engine(options: Options) -> Traits:
    """The engine of a session of a process.

    Raises:
        InvalidInputError: it does not go with the other options.
    """
    traits = choose_for_process(options.engine, probe(), options.max_dirty)
    if options.follow_shared and traits.name == "sync":
        raise InvalidInputError("--follow-shared goes with the engines ring and scan")
    return traits


def needed(options: Options) -> Path:
    """The directory. Raises: UsageError: the user has given none."""
    if not options.directory:
        raise click.UsageError("Missing option '-o' / '--output'.", click.get_current_context(True))
    return options.directory


def check_first(process: Target) -> None:
    """Refuse a target before we touch the directory, if we can tell.

    Raises:
        TargetRefusedError, TargetGoneError, PermissionDeniedError: as `check_living_target`.
    """
    if process == os.getppid():
        raise TargetRefusedError("a process cannot checkpoint itself")
    if isinstance(process, int):
        check_living_target(process)


def begin(process: Target) -> int:
    """The pid of a process that can be followed; starts a command now."""
    pid = process if isinstance(process, int) else process()
    check_living_target(pid)
    return pid


@contextlib.contextmanager
def farewell_on_error(who: str, ended: Callable[[], bool]) -> Iterator[None]:
    """Say that a target runs on, if an error ends its session."""
    try:
        yield
    except UffdtrackError:
        if not ended():
            say(f"{who}, untracked")
        raise


def run_on(process: Target, lifeline: int, options: Options) -> bool:
    """A whole session on one process, with its output; returns whether the process has ended."""
    traits = choose_engine(options)
    directory = needed(options)
    if options.keep and options.durable:
        raise InvalidInputError("--durable does not go with --keep: what is kept in memory is never durable")
    if options.keep and options.key:
        raise InvalidInputError("--key-file does not go with --keep: what is kept in memory has no digest")
    check_first(process)
    if is_tree(directory):
        raise InvalidInputError(f"{directory} holds epochs of a tree of processes; give another directory")
    if options.keep and epoch_numbers(directory):
        raise InvalidInputError(
            f"{directory} holds a chain, which would still be there when the session has ended and its "
            "epochs are gone (--keep): give another directory"
        )
    with ExitStack() as stack:
        force = options.force and not options.keep
        chain = stack.enter_context(ChainWriter(directory, options.key, force))
        pid = begin(process)
        handle = stack.enter_context(Process(pid))
        target = attach(pid, traits.name, options.max_dirty, options.follow_shared)
        with farewell_on_error(f"process {pid} runs on", handle.has_ended), target:
            files = [name for _, name in descriptors(pid)]
            for warning in target.new_warnings(read_maps(pid), files):
                say(f"warning: {warning}")
            with Wait(target, lifeline) as interrupt, Progress() as progress:
                name = f"process {pid}" if isinstance(process, int) else "the command"
                recent = stack.enter_context(RecentSink(options.keep)) if options.keep else None
                session = Session(target, chain, interrupt.seen, recent)
                work = SessionRollback(session, target, directory, recent)
                if recent:
                    stack.enter_context(kept_here(directory, os.getpid()))
                with Requests(directory, work, interrupt.wake) as requests:
                    served = ServingWait(requests, session, interrupt.wait).wait
                    wait = ChildWait(pid, name, served).wait
                    taken = take_epochs(
                        session, options, interrupt, wait, lambda row: row.warnings, progress.show
                    )
        # Now, not when it was interrupted: the same Ctrl-C may have ended the process.
        taken.ended = taken.ended or handle.has_ended()

    how = "has ended" if taken.ended else "runs on, untracked"
    taken.conclude(lambda summary: text(pid, directory, summary), f"process {pid} {how}")
    return taken.ended


def size_of(summary: report.Summary, directory: Path) -> str:
    """What epochs have, and what their files take: pages of a base that were copied twice are there twice."""
    return f"{report.size(summary.bytes)}, {report.size(on_disk(directory))} of files"


def text(pid: int, directory: Path, summary: report.Summary) -> str:
    last = summary.last
    assert isinstance(last, EpochRow)
    where = f"{summary.span} in {directory}, {size_of(summary, directory)}"
    if last.kept is not None:
        where = f"{summary.span}, the last {last.kept} of them in memory: gone with the session"
    return f"process {pid}: {where}; {summary.pauses}" + (
        f"; at most {summary.overshoot} pages beyond the limit" if last.max_dirty else ""
    )
