"""A guest goes on at its standby."""

from __future__ import annotations

from checkpoint.cli.common import say
from checkpoint.cli.replicate import ReplicationError
from checkpoint.cli.vm import Devices, pass_on_rest, tell_verdict, wait_for_guest
from checkpoint.cli.waits import Interrupt
from checkpoint.replication.standby import StandbyEdge
from uffdtrack.errors import InvalidInputError


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
    with devices.open(mirror.vm, False, replica.output, unseen=True) as outbox:

        def look() -> bool:
            if edge.failure:
                raise ReplicationError(f"the guest is stopped here: {edge.failure}")
            if edge.following.may_release():
                outbox.pass_on()
            return False

        mirror.vm.resume()
        edge.runs()
        look()
        say(f"standby: the guest {mirror.guest} runs here")
        wait_for_guest(mirror.vm, look, None, interrupt, None)
        pass_on_rest(outbox)
    tell_verdict(mirror.vm, mirror.guest)
