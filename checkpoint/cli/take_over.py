"""A guest goes on at its standby."""

from __future__ import annotations

from checkpoint.cli.waits import Interrupt
from checkpoint.replication.mirror import Mirror
from checkpoint.replication.standby import StandbyEdge


def run_taken_over(mirror: Mirror, edge: StandbyEdge, interrupt: Interrupt) -> None:
    """Run the guest of a mirror to its end."""
    mirror.ready()
