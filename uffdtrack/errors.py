"""Every exception that the project raises, and the exit code that the command line gives it."""

from __future__ import annotations

from typing import ClassVar


class UffdtrackError(Exception):
    """Base of all. The message says what happened and what to do."""

    exit_code: ClassVar[int] = 1


class InvalidInputError(UffdtrackError):
    """An argument cannot be right, or a directory is in the way."""

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
    """We do not touch this process; the message says why."""


class StopTimeoutError(TargetError):
    """A thread did not stop in time; the others run again. The message says where it was."""


class TargetBusyError(TargetError):
    """We should not stop the target now, although nothing is wrong with it; try again later.

    Attributes:
        reason: a clause that fits after "while": "gdb (pid 123) traces the process".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the target cannot be stopped while {reason}")
        self.reason = reason


class MaxStopError(TargetError):
    """The target stood for as long as it may, and runs again."""


class WatchdogGoneError(UffdtrackError):
    """Our watchdog has ended, so no stop may begin; the target runs. A new session has a new watchdog."""

    exit_code = 5


class NewMemoryError(TargetError):
    """The target has called exec: what was tracked is gone, and a new base is needed."""


class GuestError(TargetError):
    """A vCPU has ended as no guest intends: it shut down, or KVM cannot go on with it.

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
    """We cannot report the result, or pass on what a guest has sent: it is full there, or nobody reads.

    All files are safe.
    """

    exit_code = 7


class TrackerError(UffdtrackError):
    """A tracker cannot say what was written, because of its use or its state."""


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
    """vCPUs have ended without `leave()`. Their writes are in the next cycle; their places are free.

    Attributes:
        vcpus: those that have ended.
    """

    def __init__(self, message: str, vcpus: tuple[int, ...]) -> None:
        super().__init__(message)
        self.vcpus = vcpus


class HandlerGoneError(TrackerError):
    """A fault handler thread has ended: we do not know what was written since. Take a full copy."""
