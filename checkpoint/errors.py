"""Errors of checkpoints, beside those of tracking (`uffdtrack.errors`)."""

from __future__ import annotations

from uffdtrack.errors import TargetError, UffdtrackError


class RollbackRefusedError(TargetError):
    """We cannot put the target back to that epoch, and have touched nothing of it."""


class ImageError(UffdtrackError):
    """A checkpoint file or chain is damaged, incomplete or not ours."""

    exit_code = 6
