"""How `checkpoint` and `run` hold a session: a worker, signals, progress, output."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Self

from rich.console import Console
from rich.live import Live

from checkpoint import report
from checkpoint.chain import ChainWriter
from checkpoint.cli.common import say
from checkpoint.epoch import EpochRow, TreeRow
from checkpoint.schedule import Plan, run_session
from checkpoint.session import Session
from checkpoint.targets.children import Delegation, describe_child
from checkpoint.targets.identity import descriptors
from checkpoint.targets.process import ProcessTarget
from checkpoint.targets.refusals import check_living_target
from checkpoint.tree import is_tree
from uffdtrack import (
    choose_for_process,
    end_watchdog,
    leave_watchdog,
    open_pidfd,
    probe,
    read_maps,
    start_watchdog,
    verdict_on,
)
from uffdtrack.errors import InvalidInputError, OutputError, TargetRefusedError

LOOK = 0.25
LOOK_FOR = 5.0
"""Seconds between two looks for a child that does the work, and how long no epoch is needed to look."""
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def become_worker(engine: str, max_dirty: int | None, max_stop: float) -> int:
    """Where the engine works on this host, go on in a child; our own process only waits for it.

    Whoever kills the process that was started kills the one that waits. The one that stops the target
    and mends what the stop did to its system calls sees that, finishes the epoch and ends.

    Returns:
        A file descriptor that becomes readable when the waiting process has died.

    Raises:
        InvalidInputError: the engine cannot do what is asked for.
        UnsupportedError: it does not work here.
    """
    choose_for_process(engine, probe(), max_dirty)
    watchdog = start_watchdog(max_stop)
    lifeline, held = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(held)
        return lifeline
    os.close(lifeline)
    leave_watchdog()
    for number in ENDINGS:
        signal.signal(number, lambda n, frame: os.kill(child, n))
    # Its number stays its own until no signal is passed on to it any more.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    verdict = verdict_on(child)
    if verdict:
        say(f"error: {verdict}, untracked")
        status = verdict.exit_code
    elif status < 0:
        say(f"error: the worker was killed by {signal.Signals(-status).name}; the target runs on")
        status = 128 - status
    if watchdog:
        end_watchdog(watchdog)
    # The worker has said everything, and has flushed what it said.
    os._exit(status)


def poll_fds(seconds: float, *fds: int) -> set[int]:
    """Those that are readable, once one is or the time is over; negative numbers are passed over."""
    poll = select.poll()
    for fd in fds:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(seconds * 1000)}


def has_ended(pidfd: int) -> bool:
    return bool(poll_fds(0, pidfd))


class Interrupt:
    """Turns SIGINT, SIGTERM and SIGHUP into the end of a wait; what runs is finished first.

    After it they are ignored: a terminal sends one to us and one to the process that waits for us, which
    passes it on, and the second must not cut off what the first has ended in order.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def _note(self, number: int, frame: FrameType | None) -> None:
        os.write(self._writer, b"x")

    def __enter__(self) -> Self:
        for number in ENDINGS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number in ENDINGS:
            signal.signal(number, signal.SIG_IGN)
        os.close(self._reader)
        os.close(self._writer)

    def seen(self) -> bool:
        """Interrupted."""
        return bool(poll_fds(0, self._reader))


class Watch(Interrupt):
    """The same, and the end of the process: `lifeline` is readable when the waiting process has died."""

    def __init__(self, target: ProcessTarget, lifeline: int) -> None:
        super().__init__()
        self._target = target
        self._lifeline = lifeline

    def wait(self, seconds: float) -> bool:
        """Also ends at the target's limit of dirty pages. True: interrupted, or the target has ended."""
        full = self._target.space.full_fd
        ready = poll_fds(seconds, self._reader, self._lifeline, self._target.pidfd, full)
        return bool(ready - {full})

    def seen(self) -> bool:
        return bool(poll_fds(0, self._reader, self._lifeline))


class ChildWatch:
    """Waits as another one does, and says once that a child, which is in no epoch, does the work."""

    def __init__(self, pid: int, name: str, wait: Callable[[float], bool]) -> None:
        self._delegation = Delegation(pid)
        self._name = name
        self._wait = wait
        self._until = time.monotonic() + LOOK_FOR
        self._next = 0.0

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._delegation.told:
            self._look()
            asked = time.monotonic()
            if asked > self._until or end - asked <= LOOK:
                break
            if self._wait(LOOK):
                return True
            if time.monotonic() - asked < LOOK:
                return False  # a limit of dirty pages
        return self._wait(max(0.0, end - time.monotonic()))

    def _look(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK
        child = self._delegation.look()
        if child:
            say(
                f"{self._name} has a child process {describe_child(child)}, which is not in these "
                "checkpoints; --children takes the whole tree"
            )


class Progress:
    """One line on stderr, on a terminal only."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False, markup=False)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._on = console.is_terminal
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self._on:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._live.stop()

    def show(self, row: EpochRow | TreeRow) -> None:
        if self._on:
            rate = (row.epoch + 1) / max(time.monotonic() - self._started, 1e-3)
            self._live.update(
                f"epoch {row.epoch}   {row.pages} pages   {report.size(row.bytes)}   "
                f"pause {report.duration(row.times.pause_us)}   {rate:.1f} epochs/s",
                refresh=True,
            )


def raise_limit() -> None:
    """Engine ring takes two descriptors a thread. A command that is started later would inherit this."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def attach(pid: int, engine: str, max_dirty: int | None) -> ProcessTarget:
    """With "scan" where "ring" cannot follow each thread."""
    raise_limit()
    target = ProcessTarget(pid, engine, max_dirty)
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
    return ProcessTarget(pid, "scan")


def run_on(
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
    """A whole session on one process, with its output; returns whether the process has ended.

    Args:
        process: its pid, or what starts it, called when the directory is ours.
    """
    traits = choose_for_process(engine, probe(), max_dirty)
    rows: list[EpochRow] = []
    untold: OutputError | None = None

    def emit(row: EpochRow) -> None:
        rows.append(row)
        for warning in row.warnings:
            say(f"warning: {warning}")
        if as_json:
            report.emit_json(row)
        progress.show(row)

    if process == os.getppid():
        raise TargetRefusedError("a process cannot checkpoint itself")
    if isinstance(process, int):
        check_living_target(process)
    if is_tree(directory):
        raise InvalidInputError(f"{directory} holds epochs of a tree of processes; give another directory")
    with ExitStack() as stack:
        chain = stack.enter_context(ChainWriter(directory, key, force))
        pid = process if isinstance(process, int) else process()
        check_living_target(pid)
        pidfd = open_pidfd(pid)
        stack.callback(os.close, pidfd)
        with attach(pid, traits.name, max_dirty) as target:
            files = [name for _, name in descriptors(pid)]
            for warning in target.new_warnings(read_maps(pid), files):
                say(f"warning: {warning}")
            with Watch(target, lifeline) as interrupt, Progress() as progress:
                session = Session(target, chain, interrupt.seen)
                name = f"process {pid}" if isinstance(process, int) else "the command"
                wait = ChildWatch(pid, name, interrupt.wait).wait
                try:
                    ended = run_session(session, Plan(every, count, duration), wait, emit, say)
                except OutputError as error:
                    ended, untold = False, error  # the epoch is safe; nobody reads of it
        # Now, not when it was interrupted: the same Ctrl-C may have ended the process.
        ended = ended or has_ended(pidfd)
    if not rows:
        say("interrupted before the base was whole: no epoch was taken")
    elif not as_json and not untold:
        try:
            report.emit(summary(pid, directory, rows))
        except OutputError as error:
            untold = error
    say(f"process {pid} has ended" if ended else f"process {pid} runs on, untracked")
    if untold:
        raise untold
    return ended


def summary(pid: int, directory: Path, rows: list[EpochRow]) -> str:
    total = report.size(sum(row.bytes for row in rows))
    over = max(row.overshoot or 0 for row in rows)
    return (
        f"process {pid}: {report.span(0, rows[-1].epoch)} in {directory}, {total}; "
        + report.pause_summary(rows)
        + (f"; at most {over} pages beyond the limit" if rows[0].max_dirty else "")
    )
