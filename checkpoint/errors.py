"""Errors of checkpoints, beside those of tracking (`uffdtrack.errors`)."""

from __future__ import annotations

from uffdtrack.errors import TargetBusyError, TargetError, UffdtrackError


class RollbackRefusedError(TargetError):
    """We cannot put the target back to that epoch, and have touched nothing of it."""


class StandbyAwayError(TargetBusyError):
    """Nothing can be sent to a standby now. What was sent and not acknowledged comes again."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.args = (f"epochs are not taken while {reason}",)


class ImageError(UffdtrackError):
    """A checkpoint file or chain is damaged, incomplete or not ours."""

    exit_code = 6


class LinkError(UffdtrackError):
    """The other host cannot be reached, has gone, or sent what it should not; the link is closed."""

    exit_code = 5


class LeaseError(UffdtrackError):
    """Another one has the lease: who has lost it releases nothing any more, who wanted it does not get it."""

    exit_code = 5
