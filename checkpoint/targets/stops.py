"""When we should not stop a process, and the meaning of a failed stop."""

from __future__ import annotations

from checkpoint.targets.exec import EXEC_POLL
from checkpoint.targets.visitors import Visitor, find_visitor, may_trace
from uffdtrack import AddressSpace, Process, Tracee, dumps_core, frozen_cgroup
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
"""If we may not trace, but see no other tracer, so many times in a row, we believe it."""


class Stops:
    """Knows why we should not stop a process: a visitor, a frozen cgroup, a core that is being written."""

    def __init__(self, tracee: Tracee, process: Process) -> None:
        self.pid = tracee.pid
        self._tracee = tracee
        self._process = process
        self._visitor: Visitor | None = None
        self._left: Visitor | None = None  # right before this stop
        self._unseen = 0
        self._frozen = False

    def check(self) -> None:
        """Raises: TargetBusyError: we should not stop it now."""
        self.await_visitor()
        self._await_thaw()
        if dumps_core(self.pid):  # which PTRACE_INTERRUPT would cut short
            raise TargetBusyError(DUMPING)

    def why_not(
        self, error: PermissionDeniedError | StopTimeoutError, space: AddressSpace
    ) -> TargetError | None:
        """The meaning of a failed stop: try again later, or the process has just ended."""
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
        """Why we cannot attach to it after exec: a visitor may have come first."""
        self._unseen += 1
        unseen = isinstance(error, PermissionDeniedError) and self._unseen < UNSEEN_VISITS
        return self._visited(space) if find_visitor(self.pid) or unseen else None

    def attached(self) -> None:
        """Note that we are attached, so that no visitor has it."""
        self._unseen = 0

    def await_visitor(self) -> None:
        """First check whether a known visitor is still there: each failed stop costs the target some time."""
        if self._visitor and self._visitor.is_here():
            raise TargetBusyError(f"{self._visitor} traces the process")
        self._left, self._visitor = self._visitor, None

    def _visited(self, space: AddressSpace) -> TargetBusyError:
        """A visitor has taken the process from us. Its visit may have been short, and over by now."""
        self._tracee.settle(0.1)  # threads that are not the visitor's were called to stop
        space.passed_over()
        self._visitor = find_visitor(self.pid)
        # Who is just leaving may be named by no thread any more, and still keep us out.
        whom = self._visitor or self._left or "another process"
        return TargetBusyError(f"{whom} traces the process")

    def _await_thaw(self) -> None:
        """If the process is known to be frozen, ask it to stop again only after the thaw."""
        frozen = self._frozen and frozen_cgroup(self.pid)
        if frozen:
            raise TargetBusyError(f"the cgroup {frozen} of the process is frozen")
        self._frozen = False
