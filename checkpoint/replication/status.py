"""What a replicating process says of itself, and of a switchover: lines of `--json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from checkpoint.row import Row


@dataclass(frozen=True, slots=True)
class StatusRow(Row):
    """One end of a replication; what it cannot know is None.

    Attributes:
        role: "active" or "standby".
        state: of that role, in small letters ("followed").
        name: of the replication; both ends have the same.
        address: of the link or the broker, as the user gave it.
        pid: the process that answers.
        since_ns: since when it is in that state.
        peer: the other end, while there is a link.
        successor: of a standby at a broker: whether it is the one that may take over.
        taken, sent, acknowledged: of an active: the last epoch of which that is so.
        whole: of a standby: the last epoch that it has whole.
        lag_epochs, lag_bytes, lag_us: what is taken and not acknowledged; of a standby: as the active's last
            message says.
        output_held: bytes of output that wait for an acknowledgement.
        directory, stored, error: the chain, its last epoch on disk, and why there is no later one.
    """

    schema: ClassVar[str] = "uffdtrack/status/1"

    role: str
    state: str
    name: str
    address: str
    pid: int
    since_ns: int
    peer: str | None = None
    successor: bool | None = None
    taken: int | None = None
    sent: int | None = None
    acknowledged: int | None = None
    whole: int | None = None
    lag_epochs: int | None = None
    lag_bytes: int | None = None
    lag_us: float | None = None
    output_held: int | None = None
    directory: str | None = None
    stored: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SwitchoverRow(Row):
    """A switchover that was done.

    Attributes:
        name: of the replication.
        epoch: from which the guest went on.
        stood_us: how long it stood.
        runs_at: the end at which it runs now, for people.
    """

    schema: ClassVar[str] = "uffdtrack/switchover/1"

    name: str
    epoch: int
    stood_us: float
    runs_at: str
