"""What an active has said of itself and of its guest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from checkpoint.replication.links.socket_channel import printable
from kvmglue import Positions


@dataclass(slots=True)
class Heard:
    """What was heard last.

    Attributes:
        name: of the replication. host: its own, for people.
        every: seconds between two epochs; infinity: at each output.
        taken: the last epoch that it has begun, -1 for none.
        released: up to where it has released its guest's output; it may be more by now.
        stood_us: for how long the guest stood until it was handed over.
    """

    name: str = ""
    host: str = ""
    every: float = 1.0
    taken: int = -1
    released: Positions = (0, 0)
    stood_us: float = 0.0

    def note(self, meta: Mapping[str, Any]) -> None:
        """Take what a message says; what makes no sense is as if it was not there."""
        match meta.get("released"):
            case [int(serial), int(packets)] if serial >= 0 and packets >= 0:
                self.released = (serial, packets)
        match meta:
            case {"taken": int(taken)}:
                self.taken = taken
            case {"stood_us": int(stood_us)}:
                self.stood_us = stood_us
            case {"role": "active", "name": str(name)}:
                self.name, self.host = printable(name), printable(meta.get("host", ""))
        match meta.get("every"):
            case "output":
                self.every = inf
            case int(every) | float(every) if 0 < every < inf:
                self.every = every
