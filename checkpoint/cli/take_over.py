"""A guest goes on at its standby."""

from __future__ import annotations

from checkpoint.cli.common import say
from checkpoint.cli.devices import Devices
from checkpoint.cli.replicate import ReplicationError
from checkpoint.cli.vm import pass_on_rest, tell_verdict, wait_for_guest
from checkpoint.cli.waits import Interrupt
from checkpoint.replication.standby import StandbyEdge
from kvmglue import Outbox, Output, Vm
from uffdtrack.errors import InvalidInputError, UffdtrackError

AGAIN = 0.02
"""Seconds between two attempts to open the devices."""


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


def run_taken_over(edge: StandbyEdge, devices: Devices, interrupt: Interrupt) -> None:
    """Run the guest that a standby has taken over to its end. No standby follows it: its output is not held.

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

        def look() -> bool:
            if edge.following.is_lost():
                raise ReplicationError("the guest is stopped here: its lock is lost")
            if edge.following.may_release():
                outbox.pass_on()
                return True
            return False

        mirror.vm.resume()
        edge.runs()
        look()
        say(f"standby: the guest {mirror.guest} runs here")
        wait_for_guest(mirror.vm, lambda: look() and False, None, interrupt, None)
        if not look():
            raise ReplicationError("the guest's last output was not released: its lock or lease is lost")
        pass_on_rest(outbox)
    tell_verdict(mirror.vm, mirror.guest)
