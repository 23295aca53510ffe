"""A guest goes on at its standby, and is replicated again from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from checkpoint.cli.common import say
from checkpoint.cli.devices import Devices
from checkpoint.cli.options import Options
from checkpoint.cli.replicate import ReplicationError, about_session, features_for
from checkpoint.cli.replicate_vm import Guest, Switchover, run_replicated
from checkpoint.cli.vm import pass_on_rest, tell_verdict, wait_for_guest
from checkpoint.cli.waits import Interrupt
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.held import HeldOutput
from checkpoint.replication.links.address import Address
from checkpoint.replication.mirror import Mirror
from checkpoint.replication.route import Route
from checkpoint.replication.standby import StandbyEdge
from checkpoint.replication.status import StatusRow
from checkpoint.targets.vm_stop import track
from kvmglue import KvmTracker, Outbox, Output, Vm
from uffdtrack import UffdTracker
from uffdtrack.errors import InvalidInputError, UffdtrackError

AGAIN = 0.02
"""Seconds between two attempts to open the devices."""


@dataclass(frozen=True, slots=True)
class Onward:
    """What the next standby needs to be followed by a guest that was taken over.

    Attributes:
        address: of its link, or of the broker.
        key: of the digests.
        answer: see `run_replicated`.
    """

    address: Address
    key: bytes
    answer: Callable[[Callable[[], StatusRow], Switchover], None]


def open_at_last(devices: Devices, vm: Vm, output: Output, interrupt: Interrupt) -> Outbox:
    """Open the devices: on one host the active may still have them, and ends when it hears nothing.

    Raises:
        UffdtrackError: they cannot be opened, and the user waits no longer.
    """
    said = ""
    while True:
        try:
            return devices.open(vm, False, output, unseen=True)
        except UffdtrackError as error:
            if interrupt.seen():
                raise
            if str(error) != said:
                said = str(error)
                say(f"standby: the guest waits for its devices: {error}")
        interrupt.rest(AGAIN)
        interrupt.woken()


def run_taken_over(edge: StandbyEdge, devices: Devices, interrupt: Interrupt, onward: Onward | None) -> None:
    """Run the guest that a standby has taken over to its end, or until another one has it.

    Raises:
        InvalidInputError: it is no guest.
        ImageError, UnsupportedError: this host cannot run it.
        ReplicationError: it may not run here any more.
    """
    mirror, replica = edge.replica.mirror, edge.replica
    if not mirror:
        raise InvalidInputError('"vm resume" is for guests, and this is a process')
    if not edge.do(edge.following.take()):
        raise ReplicationError("another one has the lock: the guest does not run here")
    mirror.ready()
    with open_at_last(devices, mirror.vm, replica.output, interrupt) as outbox:
        route = edge.following.onward(mirror.ram.size)
        tracker = _tracked(mirror) if route and onward else None
        mirror.vm.resume()
        edge.runs()
        if edge.following.may_release():
            outbox.pass_on()
        say(f"standby: the guest {mirror.guest} runs here")
        if route and onward and tracker:
            guest = Guest(mirror.vm, outbox, tracker, mirror.guest)
            _replicate(edge, guest, mirror, route, onward, interrupt)
        else:
            _run_alone(edge, mirror, outbox, interrupt)
    tell_verdict(mirror.vm, mirror.guest)


def _tracked(mirror: Mirror) -> KvmTracker | UffdTracker | None:
    """None: its writes cannot be noticed here, which is no reason not to run it."""
    try:
        return track(mirror.vm, mirror.engine)
    except UffdtrackError as error:
        say(f"standby: warning: no standby can follow the guest from here: {error}")
        return None


def _run_alone(edge: StandbyEdge, mirror: Mirror, outbox: Outbox, interrupt: Interrupt) -> None:
    """Nobody follows: its output is not held."""

    def look() -> bool:
        if edge.following.is_lost():
            raise ReplicationError("the guest is stopped here: its lock is lost")
        if edge.following.may_release():
            outbox.pass_on()
            return True
        return False

    wait_for_guest(mirror.vm, lambda: look() and False, None, interrupt, None)
    if not look():
        raise ReplicationError("the guest's last output was not released: its lock or lease is lost")
    pass_on_rest(outbox)


def _replicate(
    edge: StandbyEdge, guest: Guest, mirror: Mirror, route: Route, onward: Onward, interrupt: Interrupt
) -> None:
    """As its active before did; until a standby has it, its output goes out at once."""
    options = Options(
        directory=None, every=edge.heard.every, count=None, duration=None, engine=mirror.engine,
        max_dirty=None, durable=None, force=False, key=onward.key, as_json=False,
    )  # fmt: skip
    held = HeldOutput(guest.outbox)
    about = about_session(edge.heard.name, "vm", options, edge.machine.run, edge.machine.term + 1)

    def wait(seconds: float, look: Callable[[], bool]) -> bool:
        return wait_for_guest(guest.vm, look, None, interrupt, seconds)

    active = ActiveEdge(
        route, about, options.key, edge.deadline, interrupt.wake, say, held, features_for(onward.address),
        is_heir=True,
    )  # fmt: skip
    say(f"its output goes out at once until a standby at {onward.address} has it")
    with active:
        active.start()
        run_replicated(guest, active, held, str(onward.address), interrupt, options, wait, onward.answer)
