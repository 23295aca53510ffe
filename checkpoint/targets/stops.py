"""When a process is better not stopped, and what a stop that has failed means."""

from __future__ import annotations

from checkpoint.targets.exec import EXEC_POLL
from checkpoint.targets.visitors import Visitor, dumps_core, find_visitor, may_trace
from uffdtrack import AddressSpace, Process, Tracee, frozen_cgroup
from uffdtrack.errors import (
    PermissionDeniedError,
    StopTimeoutError,
    TargetBusyError,
    TargetError,
    TargetGoneError,
    TargetRefusedError,
)

DUMPING = "the kernel writes a core of the process"
UNSEEN_VISITS = 3
"""Times in a row that we may be forbidden to trace without a tracer to be seen, until we believe it."""


class Stops:
    """Knows who keeps a process from being stopped: a visitor, a frozen cgroup, a core that is written."""

    def __init__(self, tracee: Tracee, process: Process) -> None:
        self.pid = tracee.pid
        self._tracee = tracee
        self._process = process
        self._visitor: Visitor | None = None
        self._unseen = 0
        self._frozen = False

    def check(self) -> None:
        """Raises: TargetBusyError: it is better not stopped now."""
        self.await_visitor()
        self._await_thaw()
        if dumps_core(self.pid):  # which PTRACE_INTERRUPT would cut short
            raise TargetBusyError(DUMPING)

    def why_not(
        self, error: PermissionDeniedError | StopTimeoutError, space: AddressSpace
    ) -> TargetError | None:
        """What a stop that has failed means: another one is to be tried later, or it has ended just then."""
        if isinstance(error, PermissionDeniedError):
            traceable = may_trace(self.pid)
            if self._process.has_ended(0 if traceable else EXEC_POLL):
                return TargetGoneError(f"process {self.pid} has ended")
            return self._visited(space) if traceable else None
        if dumps_core(self.pid):
            return TargetBusyError(DUMPING)
        self._frozen = frozen_cgroup(self.pid) is not None
        return TargetBusyError(self._tracee.late_reason)

    def why_not_attached(
        self, error: PermissionDeniedError | TargetRefusedError, space: AddressSpace
    ) -> TargetError | None:
        """What it means that it cannot be attached to after exec: a visitor may have come first."""
        self._unseen += 1
        unseen = isinstance(error, PermissionDeniedError) and self._unseen < UNSEEN_VISITS
        return self._visited(space) if find_visitor(self.pid) or unseen else None

    def attached(self) -> None:
        """Nobody keeps it from us."""
        self._unseen = 0

    def await_visitor(self) -> None:
        """A visitor that we know of is asked for first: each stop that fails costs the target some time."""
        if self._visitor and self._visitor.is_here():
            raise TargetBusyError(f"{self._visitor} traces the process")
        self._visitor = None

    def _visited(self, space: AddressSpace) -> TargetBusyError:
        """Somebody has taken the process from us. It may have been for a moment, and over by now."""
        self._tracee.settle(0.1)  # threads that are not the visitor's were called to stop
        space.passed_over()
        self._visitor = find_visitor(self.pid)
        return TargetBusyError(f"{self._visitor or 'another process'} traces the process")

    def _await_thaw(self) -> None:
        """What is known to be frozen is asked to stop again after the thaw only."""
        frozen = self._frozen and frozen_cgroup(self.pid)
        if frozen:
            raise TargetBusyError(f"the cgroup {frozen} of the process is frozen")
        self._frozen = False
