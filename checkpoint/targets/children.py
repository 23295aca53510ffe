"""Children of the target that do its work: those of a shell script, a launcher."""

from __future__ import annotations

import os
import time

from uffdtrack import children, command_name, procfs, stat_fields
from uffdtrack.errors import PermissionDeniedError, TargetGoneError, UnsupportedError
from uffdtrack.syscalls import RT_SIGSUSPEND, WAIT4, WAITID

_WAITS = {str(number) for number in (WAIT4, WAITID, RT_SIGSUSPEND)}
"""The last is a shell's `wait`."""
IDLE = 1.0
"""After so many seconds without processor time we assume that a process waits for its child."""


class Delegation:
    """Tells once when the process has a child and does nothing itself."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.told = False
        self._used = -1
        self._since = 0.0

    def look(self) -> int | None:
        """Look once; returns the child at the first look that sees it."""
        if self.told:
            return None
        try:
            # Not ourselves, where a shell has started us to checkpoint it.
            found = sorted(set(children(self.pid)) - {os.getpid(), os.getppid()})
        except (UnsupportedError, PermissionDeniedError):
            return None
        if not found or not self._is_idle():
            return None
        self.told = True
        return found[0]

    def _is_idle(self) -> bool:
        try:
            fields = stat_fields(self.pid)
            call = procfs.glance(f"/proc/{self.pid}/syscall").split(None, 1)[0]
        except (IndexError, TargetGoneError):
            return False
        used, now = int(fields[11]) + int(fields[12]), time.monotonic()
        if used != self._used:
            self._used, self._since = used, now
        return call in _WAITS or now - self._since >= IDLE


def describe_child(child: int) -> str:
    """Describe the child, for people."""
    return f"{child} ({command_name(child) or 'which has ended'})"
