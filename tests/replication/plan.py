"""What happens in an injection, by the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoint.replication.links.frames import Kind
from tests.replication.outside import OneFile, Outside, Streams
from tests.replication.packets import Datagrams, Taps
from tests.replication.zygote import Hook

DEADLINE_OF_LINK = 0.3
"""Seconds, of both sides. If this host is so busy that one is silent for longer, that is a failure more."""
PACE = 60_000
CHECK_PACE = 300

GUESTS: dict[str, Callable[[Path], Outside]] = {
    "count": Streams,
    "count to a file": OneFile,
    "check": lambda directory: Streams(directory, CHECK_PACE),
    "beacon": lambda directory: Datagrams(asks=False),
    "echo": lambda directory: Datagrams(asks=True),
    "echo on a TAP": lambda directory: Taps(asks=True),
}


@dataclass(frozen=True)
class Plan:
    """What happens in a trial.

    Attributes:
        failure: of `FAILURES`.
        kind, when, nth: the message at which it comes, see `Trigger`; kind None: by a hook.
        hold: seconds until what it holds up goes on.
        hooks: of the active and the standby.
        switch: the active is asked for a switchover.
        until: the guest ends after so many numbers; 0: it does not.
        fence: a command of the standby's, which may say $ACTIVE for the active's pid; "": both have the lock.
    """

    failure: str
    kind: Kind | None
    when: str = "after"
    nth: int = 1
    hold: float = 1.5 * DEADLINE_OF_LINK
    guest: str = "count"
    every: str = "3ms"
    hooks: tuple[Sequence[Hook], Sequence[Hook]] = ((), ())
    switch: bool = False
    until: int = 0
    fence: str = ""
