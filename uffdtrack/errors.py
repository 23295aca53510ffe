"""Every exception that the project raises, and the exit code that the command line gives it."""

from __future__ import annotations

from typing import ClassVar


class UffdtrackError(Exception):
    """Base of all. The message says what happened and what to do."""

    exit_code: ClassVar[int] = 1


class InvalidInputError(UffdtrackError):
    """An argument that cannot be right, or a directory that is in the way."""

    exit_code = 2


class UnsupportedError(UffdtrackError):
    """This host lacks something; the message names it."""

    exit_code = 3


class PermissionDeniedError(UffdtrackError):
    """A privilege is missing; the message names the fix."""

    exit_code = 4


class TargetError(UffdtrackError):
    """The target process cannot be handled."""

    exit_code = 5


class TargetGoneError(TargetError):
    """The target process has ended."""


class TargetRefusedError(TargetError):
    """A process that we do not touch; the message says why."""


class StopTimeoutError(TargetError):
    """A thread did not stop in time; the others run again."""


class NewMemoryError(TargetError):
    """The target has called exec: what was tracked is gone, and a new base is needed."""


class RollbackRefusedError(TargetError):
    """The target cannot be put back to that epoch; nothing of it was touched."""


class ImageError(UffdtrackError):
    """A checkpoint file or chain that is damaged, incomplete or not ours."""

    exit_code = 6


class StorageError(UffdtrackError):
    """The disk is full, or a file could not be written."""

    exit_code = 7
