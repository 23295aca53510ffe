"""Errors of checkpoints, beside those of tracking (`uffdtrack.errors`)."""

from __future__ import annotations

from uffdtrack.errors import TargetError, UffdtrackError


class RollbackRefusedError(TargetError):
    """The target cannot be put back to that epoch; nothing of it was touched."""


class ImageError(UffdtrackError):
    """A checkpoint file or chain that is damaged, incomplete or not ours."""

    exit_code = 6
