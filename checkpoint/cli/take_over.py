"""A guest goes on at its standby."""

from __future__ import annotations

from collections.abc import Callable

from checkpoint.cli.common import say
from checkpoint.cli.vm import Devices, pass_on_rest, passing_on, tell_verdict, wait_for_guest
from checkpoint.cli.waits import Interrupt
from checkpoint.replication.fence import FileLock
from checkpoint.replication.replica import Replica
from uffdtrack.errors import InvalidInputError


def run_taken_over(
    replica: Replica,
    lock: FileLock | None,
    devices: Devices,
    interrupt: Interrupt,
    runs: Callable[[], None],
) -> None:
    """Run the guest of a replica to its end. Its output is not held any more.

    Args:
        runs: called when it runs.
        lock: nobody else may run the guest as long as it is held.

    Raises:
        InvalidInputError: it is no guest.
        ImageError, UnsupportedError: this host cannot run it.
    """
    mirror = replica.mirror
    if not mirror:
        raise InvalidInputError('"vm resume" is for guests, and this is a process')
    if lock and not lock.take():
        raise InvalidInputError(f"{lock.path} is locked by somebody else: the guest does not run here")
    mirror.ready()
    with devices.open(mirror.vm, False, replica.output, unseen=True) as outbox:
        mirror.vm.resume()
        runs()
        outbox.pass_on()
        say(f"standby: the guest {mirror.guest} runs here")
        wait_for_guest(mirror.vm, passing_on(outbox), None, interrupt, None)
        pass_on_rest(outbox)
    tell_verdict(mirror.vm, mirror.guest)
