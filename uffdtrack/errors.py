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
    """A thread did not stop in time; the others run again. The message says where it was."""


class TargetBusyError(TargetError):
    """The target is better not stopped now, although nothing is wrong with it; a later time will do.

    Attributes:
        reason: a clause that fits behind "while": "gdb (pid 123) traces the process".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the target cannot be stopped while {reason}")
        self.reason = reason


class MaxStopError(TargetError):
    """The target stood for as long as it may, and has been let go."""


class NewMemoryError(TargetError):
    """The target has called exec: what was tracked is gone, and a new base is needed."""


class GuestError(TargetError):
    """A vCPU has ended as no guest means to: it shut down, or KVM cannot go on with it.

    Attributes:
        vcpu: which one.
    """

    def __init__(self, message: str, vcpu: int) -> None:
        super().__init__(message)
        self.vcpu = vcpu


class StorageError(UffdtrackError):
    """The disk is full, or a file could not be written."""

    exit_code = 7


class OutputError(UffdtrackError):
    """What was done cannot be told: stdout is full, or its reader has gone. What is in files is safe."""

    exit_code = 7


class TrackerError(UffdtrackError):
    """A tracker was used in a way, or came into a state, in which it cannot say what was written."""


class CycleError(TrackerError):
    """A call out of order; the message says which one is due."""


class PauseTimeoutError(TrackerError):
    """vCPUs did not stop in time; all of them run on.

    Attributes:
        vcpus: those that did not stop.
    """

    def __init__(self, message: str, vcpus: tuple[int, ...]) -> None:
        super().__init__(message)
        self.vcpus = vcpus


class VcpuGoneError(TrackerError):
    """vCPUs have ended without leave. What they wrote is in the next cycle; their places are free.

    Attributes:
        vcpus: those that have ended.
    """

    def __init__(self, message: str, vcpus: tuple[int, ...]) -> None:
        super().__init__(message)
        self.vcpus = vcpus


class HandlerGoneError(TrackerError):
    """A fault handler thread has ended: what was written since is not known. Take a full copy."""
