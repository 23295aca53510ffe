"""The link of a replicated session."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from checkpoint.cli.common import say
from checkpoint.cli.options import Options
from checkpoint.cli.replicate_options import WhereTo
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.features import DELTAS, FEATURES
from checkpoint.replication.fence import Command, FileLock, parse_fence
from checkpoint.replication.held import HeldOutput
from checkpoint.replication.links import address
from checkpoint.replication.links.address import Address
from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.route import BrokerRoute, DirectRoute, Route
from uffdtrack.errors import InvalidInputError, UffdtrackError

PATIENCE = 2.0
"""Seconds that a standby has to answer before we say that none is there."""


class AddressType(click.ParamType[Address]):
    """tls://HOST:PORT, unix:PATH, tcp://HOST:PORT."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return address.parse(str(value))
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)


class FenceType(click.ParamType[FileLock | Command]):
    """lock:PATH, or a command."""

    name = "fence"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> FileLock | Command:
        if isinstance(value, (FileLock, Command)):
            return value
        try:
            return parse_fence(str(value))
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True, slots=True)
class Replicate:
    """Where a session's epochs go, if not to a directory."""

    address: Address
    name: str
    credentials: Credentials | None
    insecure: bool
    lock: FileLock | None
    deadline: float

    @classmethod
    def of(cls, given: WhereTo) -> Replicate:
        """Raises: InvalidInputError: the options make no sense; others: see `Credentials.load`."""
        where = address.parse(given.address)
        lock = parse_fence(given.fence) if given.fence else None
        if isinstance(lock, Command):
            raise InvalidInputError("here --fence is lock:PATH; a command is the standby's")
        if lock and where.scheme == "nats":
            raise InvalidInputError("--fence goes with a direct link; a broker has a lease")
        keys = load_keys(where, given.keys, "active")
        return cls(where, given.name, keys, given.insecure, lock, given.deadline)

    def open(
        self,
        kind: str,
        name: str,
        largest: int,
        options: Options,
        wake: Callable[[], None],
        output: HeldOutput | None = None,
    ) -> ActiveEdge:
        """The link; it is started, and we are the active.

        Args:
            kind: "vm" or "process".
            name: where neither the user nor a broker's address has one.
            largest: bytes that a base may have, about.
            options: of the session.

        Raises:
            UffdtrackError: we cannot be; see `Route.open`.
        """
        if self.address.scheme == "nats":
            route: Route = BrokerRoute(self.address, largest)
        else:
            route = DirectRoute(self.address, self.credentials, self.insecure, self.lock)
        about = about_session(self.name or self.address.name or name, kind, options)
        features = features_for(self.address)
        edge = ActiveEdge(route, about, options.key, self.deadline, wake, say, output, features)
        edge.start()
        try:
            edge.await_open()
        except BaseException:
            edge.close()  # it wakes nobody any more
            raise
        if not edge.await_link(PATIENCE):
            say(f"no standby at {self.address} yet: epochs are taken when one is there")
        return edge


def about_session(name: str, kind: str, options: Options, run: str = "", term: int = 0) -> dict[str, Any]:
    """What an active says of its session.

    Args:
        run: of the guest, if it was taken over; term: how often it was.
    """
    return {
        "name": name, "host": os.uname().nodename, "kind": kind,
        "run": run or secrets.token_hex(8), "term": term,
        "keyed": bool(options.key), "every": "output" if options.at_output else options.every,
    }  # fmt: skip


def features_for(where: Address) -> Sequence[str]:
    return [DELTAS] if where.is_near else FEATURES  # compression takes longer than the way


def load_keys(where: Address, keys: Path | None, role: str) -> Credentials | None:
    """The credentials that an address needs.

    Raises:
        InvalidInputError: they are missing, or of no use there.
    """
    if where.scheme != "tls":
        if keys:
            raise InvalidInputError(f"--tls goes with tls://, not with {where}")
        return None
    if not keys:
        raise InvalidInputError("tls:// needs --tls DIR; `uffdtrack keys DIR` makes the keys of both hosts")
    return Credentials.load(keys, role)


class ReplicationError(UffdtrackError):
    """The standby runs the guest, or may: it does not run here any more."""

    exit_code = 5


def check_stopped(edge: ActiveEdge) -> None:
    """Raises: ReplicationError: the guest must not run here any more."""
    if edge.failure:
        raise edge.failure
    if edge.stopped:
        raise ReplicationError(f"the guest is stopped here: {edge.stopped}")


def pid_name(pid: int) -> str:
    return f"{os.uname().nodename}:{pid}"
