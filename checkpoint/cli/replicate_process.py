"""The session of one process whose epochs go to a standby."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from checkpoint import report
from checkpoint.cli.common import say
from checkpoint.cli.options import Options
from checkpoint.cli.replicate import Replicate, check_stopped, pid_name
from checkpoint.cli.replicate_options import WhereTo
from checkpoint.cli.session import attach, check_first, choose_engine, farewell_on_error
from checkpoint.cli.take import Progress, take_epochs
from checkpoint.cli.waits import Wait
from checkpoint.epoch import EpochRow
from checkpoint.replication.control import Control
from checkpoint.replication.held_net import HeldNet
from checkpoint.replication.rows import active_row
from checkpoint.replication.status import SwitchoverRow
from checkpoint.session import Session
from checkpoint.targets.refusals import check_living_target
from uffdtrack import PAGE, Process, descriptors, read_maps
from uffdtrack.errors import InvalidInputError


def no_switchover(progress: Callable[[str], None]) -> SwitchoverRow:
    """Raises: InvalidInputError: nobody takes over a process."""
    raise InvalidInputError("a process is not handed over: a switchover is for guests of `vm`")


def replicate_process(pid: int, lifeline: int, options: Options, to: WhereTo) -> None:
    """A whole session on one process, with its output.

    The process is checkpointed, and not fault tolerant: what it sends to the outside is not held, but for its
    packets, if the user wants it.
    """
    if options.directory or options.keep or options.force:
        raise InvalidInputError(
            "--output, --keep and --force do not go with --replicate: the standby has the chain"
        )
    replicate = Replicate.of(to)
    if replicate.lock:
        raise InvalidInputError("--fence is for guests of `vm`: nobody takes over a process")
    traits = choose_engine(options)
    check_first(pid)
    check_living_target(pid)
    with ExitStack() as stack:
        handle = stack.enter_context(Process(pid))
        target = attach(pid, traits.name, options.max_dirty, options.follow_shared)
        stack.enter_context(farewell_on_error(f"process {pid} runs on", handle.has_ended))
        stack.enter_context(target)
        for warning in target.new_warnings(read_maps(pid), [name for _, name in descriptors(pid)]):
            say(f"warning: {warning}")
        interrupt = stack.enter_context(Wait(target, lifeline))
        progress = stack.enter_context(Progress())
        largest = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        if to.hold_net:
            target.net = stack.enter_context(HeldNet(pid))
        edge = stack.enter_context(replicate.open("process", pid_name(pid), largest, options, interrupt.wake))
        address = str(replicate.address)
        stack.enter_context(Control(lambda: active_row(edge, address), no_switchover))
        session = Session(target, edge.sink.images, interrupt.seen, edge.sink)

        def wait(seconds: float) -> bool:
            ended = interrupt.wait(seconds)
            check_stopped(edge)
            return ended

        held = "its packets are held" if to.hold_net else "what it sends to others is not held"
        say(f"epochs of process {pid} go to {replicate.address}; {held}")
        taken = take_epochs(session, options, interrupt, wait, lambda row: row.warnings, progress.show)
        taken.ended = taken.ended or handle.has_ended()
        edge.end("the process has ended" if taken.ended else "the session has ended")

    def text(summary: report.Summary) -> str:
        last = summary.last
        assert isinstance(last, EpochRow)
        return (
            f"process {pid}: {summary.span} at {replicate.address}, {report.size(summary.bytes)}; "
            f"{summary.pauses}"
        )

    how = "has ended" if taken.ended else "runs on, untracked"
    taken.conclude(text, f"process {pid} {how}")
