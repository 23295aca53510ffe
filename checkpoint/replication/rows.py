"""What `status` says of either end."""

from __future__ import annotations

import os

from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.standby import StandbyEdge
from checkpoint.replication.status import StatusRow

UNPROTECTED = "unprotected"
"""The guest was taken over, and no standby has an epoch of it yet: its output is not held."""


def _number(epoch: int) -> int | None:
    """-1: there is none yet."""
    return epoch if epoch >= 0 else None


def active_row(edge: ActiveEdge, address: str) -> StatusRow:
    """In any thread."""
    outgoing, linked = edge.outgoing, edge.is_linked()
    return StatusRow(
        role="active",
        state=UNPROTECTED if edge.is_unprotected else edge.machine.state.name.lower(),
        name=str(edge.about["name"]),
        address=address,
        pid=os.getpid(),
        since_ns=edge.since_ns,
        peer=edge.far_name if linked else None,
        taken=_number(outgoing.begun),
        sent=_number(outgoing.sent),
        acknowledged=_number(outgoing.acknowledged),
        lag_epochs=outgoing.begun - outgoing.acknowledged,
        lag_bytes=outgoing.unacknowledged,
        lag_us=outgoing.lag_us,
        output_held=edge.output.held if edge.output else None,
        error=(edge.output.error if edge.output and linked else edge.why) or None,
    )


def standby_row(edge: StandbyEdge, address: str) -> StatusRow:
    """In any thread."""
    store = edge.replica.store
    whole = edge.machine.whole
    return StatusRow(
        role="standby",
        state=edge.machine.state.name.lower(),
        name=edge.heard.name,
        address=address,
        pid=os.getpid(),
        since_ns=edge.since_ns,
        peer=edge.peer,
        successor=edge.following.is_successor,
        whole=_number(whole),
        lag_epochs=max(0, edge.heard.taken - whole),
        directory=str(store.directory),
        stored=_number(store.last),
        error=store.error or None,
    )
