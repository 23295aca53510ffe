"""What breaks replication on purpose, in a process that the zygote starts: negative controls, and reports.

Each of `PATCHES` makes one rule of docs/fault-tolerance.md untrue; an oracle has to see that.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from checkpoint.cli import handover, standby
from checkpoint.errors import LinkError
from checkpoint.replication import outgoing, replica
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.broker.broker_active import BrokerActive
from checkpoint.replication.held import HeldOutput
from checkpoint.replication.links import socket_channel
from checkpoint.replication.standby import StandbyEdge
from kvmglue import Positions

TIP = "tip of the output: "
"""The standby says so, and up to where it has the guest's output, when it takes over."""
ANSWER = 1.0
"""Seconds that a guest stands for the answer to a switchover."""
LEASE = 2.0
"""Seconds of a short lease."""


def prepare() -> None:
    """What is the same in all processes of these tests: reports, and SIGUSR2 asks for a switchover."""
    run = standby.run_taken_over

    def run_and_tell(edge: StandbyEdge, *rest: Any) -> None:
        held = edge.replica.output
        print(TIP, *held.start, *held.end, file=sys.stderr, flush=True)
        run(edge, *rest)

    standby.run_taken_over = run_and_tell
    handover.ANSWER = ANSWER
    start = ActiveEdge.start

    def start_and_listen(edge: ActiveEdge) -> None:
        def ask() -> None:
            with contextlib.suppress(LinkError):  # it has ended
                edge.ask()

        start(edge)
        signal.signal(signal.SIGUSR2, lambda *_: threading.Thread(target=ask, daemon=True).start())

    ActiveEdge.start = start_and_listen  # type: ignore[method-assign]


def release_early() -> None:
    """The active does not wait for acknowledgements (rule 1)."""
    outgoing.Outgoing.wait = lambda self, ticket: None  # type: ignore[method-assign]


def merge_late() -> None:
    """The standby acknowledges an epoch that it merges when the next one has come (rule 2)."""
    merge, late = replica.Replica.merge, list[Any]()

    def merge_one_before(self: replica.Replica, received: replica.Received) -> None:
        if received.base:
            late.clear()
        late.append(received)
        if len(late) > 1 or received.base:
            merge(self, late.pop(0))

    replica.Replica.merge = merge_one_before  # type: ignore[method-assign]


def close_slowly() -> None:
    """It does not matter how long it takes to close a link to somebody who reads no more."""
    socket_channel.CLOSE_SECONDS = 3600.0


def be_an_heir() -> None:
    """No mistake: a guest that begins is as one that was taken over: its output is not held at first."""
    make = ActiveEdge.__init__

    def make_heir(self: ActiveEdge, *given: Any, **named: Any) -> None:
        make(self, *given, **named, is_heir=True)

    ActiveEdge.__init__ = make_heir  # type: ignore[method-assign]


def hold_late() -> None:
    """And it holds output when its first epoch is acknowledged, not from where that was taken on."""
    be_an_heir()
    release, acknowledged, known = HeldOutput.release, HeldOutput.acknowledged, set[HeldOutput]()

    def note(self: HeldOutput, upto: Positions) -> None:
        known.add(self)
        acknowledged(self, upto)

    HeldOutput.acknowledged = note  # type: ignore[method-assign]
    HeldOutput.release = lambda self, everything=False: release(self, self not in known)  # type: ignore[method-assign]


def lease_briefly() -> None:
    """No mistake: leases are short."""
    opened = BrokerActive.open

    async def briefly(*given: Any, **named: Any) -> BrokerActive:
        return await opened(*given, **{"seconds": LEASE, **named})

    BrokerActive.open = briefly  # type: ignore[method-assign, assignment]


PATCHES: dict[str, Callable[[], None]] = {
    "release-early": release_early, "merge-late": merge_late, "close-slowly": close_slowly,
    "heir": be_an_heir, "hold-late": hold_late, "lease-briefly": lease_briefly,
}  # fmt: skip
