"""The session of a VM whose epochs go to a standby, and whose output is held until they are acknowledged."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from checkpoint import report
from checkpoint.cli.common import say
from checkpoint.cli.handover import Handover
from checkpoint.cli.options import Options
from checkpoint.cli.replicate import Replicate, ReplicationError, check_stopped
from checkpoint.cli.replicate_options import WhereTo
from checkpoint.cli.take import take_epochs
from checkpoint.cli.waits import Interrupt
from checkpoint.cli.worker import SWITCH
from checkpoint.precopy import SessionInterrupted
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.control import Control, Progress
from checkpoint.replication.held import HeldOutput
from checkpoint.replication.rows import active_row
from checkpoint.replication.status import StatusRow, SwitchoverRow
from checkpoint.session import Session
from checkpoint.targets.vm import VmTarget
from kvmglue import KvmTracker, Outbox, Vm
from uffdtrack import UffdTracker
from uffdtrack.errors import InvalidInputError, PauseTimeoutError, TargetBusyError

FLUSH = 30.0
"""So many seconds the last output waits for its acknowledgement, when the guest has ended."""
LAST = 5.0
"""So many seconds it waits when the user ends the session."""
AGAIN = 0.05
LEASE_OVER = "its lock or lease is lost"
Wait = Callable[[float, Callable[[], bool]], bool]
Switchover = Callable[[Progress], SwitchoverRow]


def replicate_vm(
    vm: Vm,
    outbox: Outbox,
    tracker: KvmTracker | UffdTracker,
    guest: str,
    interrupt: Interrupt,
    options: Options,
    to: WhereTo,
    wait: Wait,
) -> None:
    """Run a paused VM to its end, or until its standby has it.

    Args:
        wait: for some seconds, calling a function now and then; True: the session has to end.

    Raises:
        ReplicationError: the standby runs the guest, or may.
    """
    if options.directory or options.force:
        raise InvalidInputError("--output and --force do not go with --replicate: the standby has the chain")
    replicate = Replicate.of(to)
    held = HeldOutput(outbox)
    name = f"{guest}-{os.getpid()}"
    with ExitStack() as stack:
        edge = stack.enter_context(replicate.open("vm", name, vm.ram.size, options, interrupt.wake, held))

        def answer(status: Callable[[], StatusRow], switchover: Switchover) -> None:
            stack.enter_context(Control(status, switchover))

        of = Guest(vm, outbox, tracker, guest)
        run_replicated(of, edge, held, str(replicate.address), interrupt, options, wait, answer)


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that is replicated, or shall be. `name`: for people."""

    vm: Vm
    outbox: Outbox
    tracker: KvmTracker | UffdTracker
    name: str


def run_replicated(
    guest: Guest,
    edge: ActiveEdge,
    held: HeldOutput,
    address: str,
    interrupt: Interrupt,
    options: Options,
    wait: Wait,
    answer: Callable[[Callable[[], StatusRow], Switchover], None],
) -> None:
    """Run a guest to its end, or until its standby has it; its epochs go to an edge that was started.

    Args:
        held: of the guest and of the edge.
        wait: see `replicate_vm`.
        answer: gets what answers `status` and `switchover`, for as long as the edge is there.

    Raises:
        ReplicationError: the standby runs the guest, or may.
    """
    sys.setswitchinterval(SWITCH)
    held.may_release = lambda: edge.may_release
    patience = Patience(interrupt)
    edge.is_given_up = patience.is_over
    target = VmTarget(guest.vm, guest.tracker, guest.name, guest.outbox, held.acknowledged)

    def release() -> None:
        """In this thread, which takes the epochs: behind one that is on its way nothing is let out."""
        held.release(everything=edge.is_unprotected and not session.stream.in_flight)

    def interrupted() -> bool:
        """Asked while a base is copied."""
        if edge.is_unprotected:
            release()
        return interrupt.seen()

    session = Session(target, edge.sink.images, interrupted, edge.sink)
    handover = Handover(edge, session, target)
    answer(lambda: active_row(edge, address), handover.request)
    said = ""

    def look() -> bool:
        nonlocal said
        release()
        if held.error != said:
            said = held.error
            say(f"{said}; it is held, and tried again" if said else "output goes on")
        check_stopped(edge)
        return options.at_output and guest.vm.has_output

    def waiting(seconds: float) -> bool:
        if edge.asked and handover.done():
            return True
        return wait(seconds, look)

    guest.vm.resume()
    taken = take_epochs(session, options, interrupt, waiting, lambda row: row.warnings)
    if not edge.is_resigned:
        target.stands = True
        flush(session, edge, held, patience, guest.vm)
        guest.tracker.close()
        if not edge.end("the guest has ended") and not edge.is_unprotected:
            say("no standby knows that the guest has ended")

    def text(summary: report.Summary) -> str:
        return f"{summary.span} at {address}; {summary.pauses}"

    if taken.summary.last or taken.untold or not edge.is_unprotected:
        taken.conclude(text, tell=say)  # stdout is the guest's
    if edge.is_resigned and not edge.is_taken:
        raise ReplicationError(handover.verdict)
    if edge.is_resigned:
        say(handover.verdict)


class Patience:
    """How long epochs are waited for at the end: a standby may hear us and acknowledge nothing."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._until = math.inf

    def limit(self, seconds: float) -> None:
        self._until = min(self._until, time.monotonic() + seconds)

    def is_over(self) -> bool:
        """In any thread."""
        if math.isinf(self._until) and self._interrupt.seen():
            self.limit(LAST)
        return time.monotonic() > self._until

    def rest(self) -> None:
        self._interrupt.rest(AGAIN)
        self._interrupt.woken()


def flush(session: Session, edge: ActiveEdge, held: HeldOutput, patience: Patience, vm: Vm) -> None:
    """The guest stands for good: its last output goes out when a last epoch is acknowledged.

    Raises:
        ReplicationError: no standby has acknowledged it in time.
    """
    patience.limit(FLUSH)
    while True:
        if edge.is_unprotected:
            let_out(vm, held, patience)
            return
        try:
            edge.final()
            session.take()
            held.release()
            if held.is_all_out:
                return
        except (TargetBusyError, SessionInterrupted):
            check_stopped(edge)
        if patience.is_over():
            raise ReplicationError(
                "the guest's last output was not acknowledged by a standby, and was not released"
            )
        patience.rest()


def stops(vm: Vm) -> bool:
    """Pause it; False: the host is too busy for that now, and it runs on."""
    with contextlib.suppress(PauseTimeoutError):
        vm.pause()
        return True
    return False


def let_out(vm: Vm, held: HeldOutput, patience: Patience) -> None:
    """The same of a guest that nobody can take over: its last output goes out at once.

    Raises:
        ReplicationError: it may not, or nobody has taken it in time.
    """
    while not stops(vm):
        if patience.is_over():
            raise ReplicationError("the guest's last output was not released: its vCPUs did not stop in time")
        patience.rest()
    while not held.release(everything=True):
        if patience.is_over():
            raise ReplicationError(f"the guest's last output was not released: {held.error or LEASE_OVER}")
        patience.rest()
