"""What breaks replication on purpose, in a process that the zygote starts: negative controls, and reports.

Most of `PATCHES` make one rule of docs/fault-tolerance.md untrue; an oracle has to see that.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from checkpoint.cli import handover, standby
from checkpoint.errors import LinkError
from checkpoint.replication import held, outgoing, replica, route
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.active_link import ActiveLink
from checkpoint.replication.broker import broker_channel
from checkpoint.replication.broker.broker_active import BrokerActive
from checkpoint.replication.held import HeldOutput
from checkpoint.replication.links import socket_channel
from checkpoint.replication.links.frames import Kind, Message
from checkpoint.replication.standby import StandbyEdge
from checkpoint.targets.vm import VmTarget
from kvmglue import Positions
from uffdtrack.errors import StopTimeoutError

TIP = "tip of the output: "
"""The standby says so, and up to where it has the guest's output, when it takes over."""
ANSWER = 1.0
"""Seconds that a guest stands for the answer to a switchover."""
LEASES = 1.0, 2.0
"""Seconds of leases."""


def prepare() -> None:
    """What is the same in all processes of these tests: reports, and SIGUSR2 asks for a switchover."""
    run = standby.run_taken_over

    def run_and_tell(edge: StandbyEdge, *rest: Any) -> None:
        output = edge.replica.output
        print(TIP, *output.start, *output.end, file=sys.stderr, flush=True)
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
    outgoing.Outgoing.is_on_its_way = lambda self, ticket: False  # type: ignore[method-assign]
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


def release_when_stored() -> None:
    """What the broker has stored counts as acknowledged by the standby (rule 1)."""
    commit = broker_channel.BrokerChannel._commit

    async def commit_and_acknowledge(self: broker_channel.BrokerChannel, last: Message) -> None:
        await commit(self, last)
        if last.kind is Kind.END:
            meta = {"epoch": last.meta["epoch"], "digest": last.meta["digest"]}
            self._mail.offer(Message(Kind.ACK, meta))

    broker_channel.BrokerChannel._commit = commit_and_acknowledge  # type: ignore[method-assign]
    broker_channel.BrokerChannel._has = lambda self, digest: asyncio.sleep(0)  # type: ignore


def ignore_lease() -> None:
    """The active releases whether its lease has ended or not (rule 3)."""
    route.BrokerRoute.may_release = lambda self: True  # type: ignore[method-assign]


def short_lease(seconds: float) -> None:
    """The lease of an active at a broker lasts for so long."""
    opened = BrokerActive.open

    async def briefly(*given: Any, **named: Any) -> BrokerActive:
        return await opened(*given, **{"seconds": seconds, **named})

    BrokerActive.open = briefly  # type: ignore[method-assign, assignment]


def note_releases() -> None:
    """Have beside the log what the oracle of brokers has to know.

    In LOG.notes: up to where each epoch has the output ("to"), and what it says that was released ("from").
    In LOG.releasing: how many threads are between asking whether they may release, and having released.
    """
    log = os.readlink("/proc/self/fd/2")
    notes = os.open(f"{log}.notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    announce, ended = outgoing.Outgoing.announce, ActiveLink._ended

    def note_announced(self: Any, life: int, digest: str, n: int, size: int, output: Any, end: Any) -> Any:
        os.write(notes, f"to {digest} {output[0]} {output[1]}\n".encode())
        return announce(self, life, digest, n, size, output, end)

    def note_ended(self: ActiveLink, end: Message) -> list[Message]:
        sent = ended(self, end)
        for message in sent:
            if message.kind is Kind.END:
                serial, packets = message.meta["released"]
                os.write(notes, f"from {message.meta['digest']} {serial} {packets}\n".encode())
        return sent

    outgoing.Outgoing.announce = note_announced  # type: ignore[method-assign]
    ActiveLink._ended = note_ended  # type: ignore[method-assign]
    with open(f"{log}.releasing", "w+b") as file:
        file.write(bytes(8))
        file.flush()
        shared = mmap.mmap(file.fileno(), 8)
    lock = threading.Lock()

    def count(change: int) -> None:
        with lock:
            shared[0] += change

    def counted(inner: Callable[..., None]) -> Callable[..., None]:
        def around(*given: Any) -> None:
            count(1)
            try:
                inner(*given)
            finally:
                count(-1)

        return around

    for name in ("_release", "packets_acknowledged"):
        setattr(held.HeldOutput, name, counted(getattr(held.HeldOutput, name)))


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


def stop_late() -> None:
    """The first time that a guest is to stand for a switchover, its vCPU does not stop in time."""
    window, late = VmTarget.window, iter([True])

    def window_or_late(self: VmTarget) -> Any:
        if self.stands and next(late, False):
            raise StopTimeoutError("it is late")
        return window(self)

    VmTarget.window = window_or_late  # type: ignore[method-assign]


PATCHES: dict[str, Callable[[], None]] = {
    "release-early": release_early, "merge-late": merge_late, "close-slowly": close_slowly,
    "heir": be_an_heir, "hold-late": hold_late,
    "release-when-stored": release_when_stored, "ignore-lease": ignore_lease, "note-releases": note_releases,
    "stop-late": stop_late,
    **{f"lease {seconds:g}": functools.partial(short_lease, seconds) for seconds in LEASES},
}  # fmt: skip
