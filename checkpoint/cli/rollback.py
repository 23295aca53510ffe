"""uffdtrack rollback PID DIR@N"""

from __future__ import annotations

from pathlib import Path

import click

from checkpoint import report
from checkpoint.chain import Chain
from checkpoint.cli.common import PID, Place, json_option, key_option, max_stop_option, say
from checkpoint.cli.diff import open_view
from checkpoint.cli.tree import rollback_tree_to
from checkpoint.directory import Lock
from checkpoint.kept_in_memory import keeper_of
from checkpoint.rollback.order import rollback
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.request import LAST, Request, ask, fingerprint, is_served, outcome_row
from checkpoint.tree import is_tree
from uffdtrack.errors import InvalidInputError


@click.command("rollback", short_help="Put a live process back to an epoch.")
@click.argument("pid", type=PID)
@click.argument("place", metavar="DIR@N", type=Place())
@click.option(
    "--anyway", is_flag=True,
    help="Also where it tears the process from what it has in the kernel (a KVM guest, an io_uring, aio), or "
    "changes memory that other processes write, too; and end what was born since of a tree of processes.",
)  # fmt: skip
@key_option
@max_stop_option
@json_option
def command(
    pid: int, place: tuple[Path, int | None], anyway: bool, key: bytes, max_stop: float, as_json: bool
) -> None:
    """Put memory, mappings and registers of the live process PID back to epoch N.

    The chain is verified and everything is planned before the process is touched. Files, sockets and
    other state of the kernel are not rolled back; what of them differs is named. Where that would tear the
    program (virtual machines, io_uring, rings and devices that are mapped) it is refused.

    Memory that is mapped shared goes back, and so do the contents of a file that is mapped so: what changes
    is named, with the processes that map it, too. Where one of them can write it, it is refused.

    Where a session runs on that chain, it does the rollback, and goes on.

    Where DIR is of a tree of processes, all of them are put back, and PID is one of them. Processes that were
    born since are ended with --anyway; without, it is refused.
    """
    if is_tree(place[0]):
        rollback_tree_to(pid, place, key, anyway, max_stop, as_json)
        return
    outcome = from_memory(pid, place, anyway, max_stop)
    if outcome is None:
        Chain(place[0]).open(place[1])  # before the lock makes a file in what is no chain
        outcome = by_session(pid, place, key, anyway, max_stop)
    if outcome is None:
        with Lock(place[0]):
            outcome = rollback(pid, open_view(place, key), anyway, max_stop)
    for warning in outcome.warnings:
        say(f"warning: {warning}")
    if as_json:
        report.emit_json(outcome_row(pid, outcome))
    else:
        report.emit(
            f"process {pid} is back at epoch {outcome.epoch}: {outcome.pages} pages written, "
            f"{outcome.mappings} mappings changed, {len(outcome.ended)} threads ended, "
            f"paused {report.duration(outcome.pause_us)}"
        )


def from_memory(pid: int, place: tuple[Path, int | None], anyway: bool, max_stop: float) -> Outcome | None:
    """Let the session do it that keeps the epochs in its memory. None: they are in files.

    Raises:
        InvalidInputError: the session is about to end, and the epochs with it.
    """
    keeper = keeper_of(place[0])
    if keeper is None:
        return None
    epoch = LAST if place[1] is None else place[1]
    outcome = ask(place[0], Request(pid, epoch, "", "", anyway, max_stop))
    if outcome is None:
        raise InvalidInputError(
            f"process {keeper}, which keeps the epochs of {place[0]} in memory, does not answer: it is "
            "about to end, and they with it"
        )
    return outcome


def by_session(
    pid: int, place: tuple[Path, int | None], key: bytes, anyway: bool, max_stop: float
) -> Outcome | None:
    """Let the session do it that follows the process. None: there is none on that chain."""
    if not is_served(place[0]):
        return None
    view = open_view(place, key)
    epoch = view.epoch
    return ask(place[0], Request(pid, epoch.epoch, epoch.digest, fingerprint(view), anyway, max_stop))
