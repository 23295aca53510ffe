"""uffdtrack standby --listen ADDRESS -o DIR"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from checkpoint.chain import Chain
from checkpoint.cli.common import DIRECTORY, key_option, say
from checkpoint.cli.devices import Devices, device_options
from checkpoint.cli.handover import PATIENCE
from checkpoint.cli.replicate import (
    AddressType,
    FenceType,
    ReplicationError,
    load_keys,
)
from checkpoint.cli.replicate_options import deadline_option, insecure_option, tls_option
from checkpoint.cli.replicate_vm import Switchover
from checkpoint.cli.take_over import Onward, run_taken_over
from checkpoint.cli.waits import Interrupt
from checkpoint.export import export
from checkpoint.replication.control import Control, Progress
from checkpoint.replication.fence import Command, FileLock
from checkpoint.replication.following import BrokerFollowing, DirectFollowing, Following
from checkpoint.replication.links.address import Address
from checkpoint.replication.replica import Replica
from checkpoint.replication.route import DirectRoute
from checkpoint.replication.rows import standby_row
from checkpoint.replication.standby import StandbyEdge
from checkpoint.replication.status import StatusRow, SwitchoverRow
from checkpoint.replication.store import Store
from uffdtrack.errors import InvalidInputError, StorageError

RESUME, EXPORT = "vm resume", "export "
LOOK = 0.5
"""Seconds between two looks at what the link's thread has to say."""


@click.command("standby", short_help="Follow another host's guest or process, and take over.")
@click.option(
    "--listen", "where", type=AddressType(), metavar="ADDRESS",
    help="Where an active connects to: tls://HOST:PORT, unix:PATH or tcp://HOST:PORT.",
)  # fmt: skip
@click.option(
    "--follow", "broker", type=AddressType(), metavar="ADDRESS",
    help="A broker that carries the epochs: nats://HOST:PORT/NAME; several standbys may follow.",
)  # fmt: skip
@click.option(
    "-o", "--output", "directory", type=DIRECTORY, required=True, help="Directory of the chain that comes."
)
@click.option(
    "--replicate", "onward", type=AddressType(), metavar="ADDRESS",
    help="When it has taken over, send the guest's epochs to another standby, which listens there, with the "
    "same --tls, --insecure and --fence. With --follow, those that follow go on to do so by themselves.",
)  # fmt: skip
@click.option(
    "--on-failover", "action", metavar="WHAT",
    help=f'"{RESUME}" (a guest\'s default), "export FILE", or a command, for which UFFDTRACK_PLACE is the '
    "epoch (DIR@N).",
)  # fmt: skip
@tls_option
@insecure_option
@click.option(
    "--fence", type=FenceType(), metavar="FENCE",
    help="What has to be sure before a takeover: lock:PATH, a file that the active locks, or a command that "
    "ends with 0 when the active is dead. On a Unix socket the end of the active's process counts, too.",
)  # fmt: skip
@deadline_option
@click.option("--force", is_flag=True, help="Replace a chain that is there, once a base has come.")
@key_option
@device_options
def command(
    where: Address | None,
    broker: Address | None,
    onward: Address | None,
    directory: Path,
    action: str | None,
    keys: Path | None,
    insecure: bool,
    fence: FileLock | Command | None,
    deadline: float,
    force: bool,
    key: bytes,
    devices: Devices,
) -> None:
    """Take the epochs of a guest or process that is replicated to here; go on with it when its host fails.

    What comes is an ordinary chain, for all verbs. It takes over only if a fence says that the active can
    send nothing any more (docs/fault-tolerance.md). It ends when there is nothing to take over any more.
    """
    following = following_of(where, broker, onward, keys, insecure, fence)
    if action and action.strip() == EXPORT.strip():
        raise InvalidInputError('--on-failover "export FILE" needs the name of a file')
    if onward and action not in (None, RESUME):
        raise InvalidInputError(f'--replicate is for a guest that goes on here: --on-failover "{RESUME}"')
    devices.check()  # now, not when the guest has nobody else
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        replica = stack.enter_context(Replica(Store(directory, force), key))
        name = os.uname().nodename
        edge = stack.enter_context(StandbyEdge(following, name, replica, deadline, interrupt.wake, _tell))
        edge.start()
        answers = Answers(edge, str(where or broker))
        stack.enter_context(Control(lambda: answers.status(), lambda progress: answers.switchover(progress)))
        follow(edge, interrupt)
        if edge.outcome == "over":
            say(f"standby: {edge.why}; {_epochs(replica)}")
        elif edge.outcome == "takeover":
            to = onward or broker
            take_over(edge, interrupt, action, devices, Onward(to, key, answers.become) if to else None)
        else:
            say(f"standby: it follows no more; {_epochs(replica)}")


def following_of(
    where: Address | None,
    broker: Address | None,
    onward: Address | None,
    keys: Path | None,
    insecure: bool,
    fence: FileLock | Command | None,
) -> Following:
    """Raises: InvalidInputError: the options make no sense."""
    if (where is None) == (broker is None):
        raise InvalidInputError("give one of --listen and --follow")
    if where:
        if where.scheme == "nats":
            raise InvalidInputError(f"{where} is a broker's address: --follow {where}")
        own = load_keys(where, keys, "standby") if where.scheme == "tls" or not onward else None
        if onward == where:
            raise InvalidInputError(f"{where} is where this standby listens: --replicate is for the next one")
        return DirectFollowing(where, own, insecure, fence, _route(onward, keys, insecure, fence))
    assert broker
    if broker.scheme != "nats":
        raise InvalidInputError(f"{broker} is no broker's address: nats://HOST:PORT/NAME is expected")
    if keys or insecure or fence or onward:
        raise InvalidInputError(
            "--replicate, --tls, --insecure and --fence go with --listen; a broker has a lease, and standbys "
            "that follow whoever is active"
        )
    return BrokerFollowing(broker)


def _route(
    onward: Address | None, keys: Path | None, insecure: bool, fence: FileLock | Command | None
) -> DirectRoute | None:
    """To the next standby; a host of a pair may have one key for both directions.

    Raises:
        InvalidInputError: the options make no sense.
    """
    if not onward:
        return None
    if onward.scheme == "nats":
        raise InvalidInputError(f"{onward} is a broker's address: all standbys follow it, --follow {onward}")
    role = "active" if keys and (keys / "active.pem").exists() else "standby"
    credentials = load_keys(onward, keys, role) if onward.scheme == "tls" else None
    return DirectRoute(onward, credentials, insecure, fence if isinstance(fence, FileLock) else None)


class Answers:
    """What the process answers to those who ask it.

    Attributes:
        status, switchover: as a standby; when it has become an active, as that.
    """

    def __init__(self, edge: StandbyEdge, address: str) -> None:
        self._edge = edge
        self.status: Callable[[], StatusRow] = lambda: standby_row(edge, address)
        self.switchover: Switchover = self._ask

    def become(self, status: Callable[[], StatusRow], switchover: Switchover) -> None:
        self.status, self.switchover = status, switchover

    def _ask(self, progress: Progress) -> SwitchoverRow:
        """Ask the active for one, and wait until the guest runs here.

        Raises:
            ReplicationError: it cannot be asked, or does not do it.
        """
        edge = self._edge
        why = edge.ask()
        if why:
            raise ReplicationError(f"there can be no switchover: {why}")
        progress("the active was asked")
        if not edge.await_run(PATIENCE):
            raise ReplicationError("the active has not handed its guest over")
        return SwitchoverRow(edge.heard.name, edge.machine.whole, edge.heard.stood_us, edge.name)


def follow(edge: StandbyEdge, interrupt: Interrupt) -> None:
    """Wait until there is an outcome, or the user ends it. Raises: what has ended the link's thread."""
    while not edge.outcome and not interrupt.seen():
        interrupt.rest(LOOK)
        interrupt.woken()
        if edge.failure:
            raise edge.failure
    if edge.failure:
        raise edge.failure


def take_over(
    edge: StandbyEdge, interrupt: Interrupt, action: str | None, devices: Devices, onward: Onward | None
) -> None:
    """Go on with what has come. Raises: InvalidInputError: that cannot be done with it."""
    replica = edge.replica
    say(f"standby: {edge.why}; taking over from epoch {edge.machine.whole}")
    if action not in (None, RESUME):
        check_whole_on_disk(edge)
    if action is None and not replica.mirror:
        replica.store.drain()
        say(f"standby: the last epoch is {_place(replica)}; no --on-failover says what to do with it")
    elif action in (None, RESUME):
        run_taken_over(edge, devices, interrupt, onward)
    elif action.startswith(EXPORT):
        file = Path(action.removeprefix(EXPORT).strip())
        export(Chain(replica.store.directory).view(replica.store.last), file, force=True)
        say(f"standby: {_place(replica)} is in {file}")
    else:
        environment = {**os.environ, "UFFDTRACK_PLACE": _place(replica)}
        status = subprocess.run(action, shell=True, env=environment, check=False).returncode
        left = f"; the last epoch is {_place(replica)}" if status else ""
        say(f"standby: {shlex.quote(action)} has ended with exit status {status}{left}")
        if status:
            raise click.exceptions.Exit(status if status > 0 else 128 - status)


def check_whole_on_disk(edge: StandbyEdge) -> None:
    """What is done with the chain is done with all that was acknowledged.

    Raises:
        StorageError: the chain lacks it.
    """
    store = edge.replica.store
    store.drain()
    if store.error or store.last != edge.machine.whole:
        raise StorageError(
            f"{store.directory} has epochs up to {store.last}, and {edge.machine.whole} was acknowledged: "
            f"{store.error or 'not all is written'}. The guest could go on from memory alone (vm resume)"
        )


def _tell(text: str) -> None:
    say(f"standby: {text}")


def _place(replica: Replica) -> str:
    return f"{replica.store.directory}@{replica.store.last}"


def _epochs(replica: Replica) -> str:
    store = replica.store
    store.drain()
    return f"epochs up to {store.last} are in {store.directory}" if store.last >= 0 else "nothing has come"
