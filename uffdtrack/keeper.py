"""A command that outlives us, while we still learn of its end."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Sequence
from typing import NoReturn

from uffdtrack._sys import lib

_STARTED = struct.Struct("ii")


class Kept:
    """A command whose parent is a small process that lives as long as the command does.

    A parent-death signal that it asks for (PR_SET_PDEATHSIG) comes when that parent ends, so not with our own
    end. We stay an ancestor, and Yama lets ancestors trace (Documentation/admin-guide/LSM/Yama.rst). The
    command has a session of its own.

    Attributes:
        pid: of the command.
    """

    def __init__(self, argv: Sequence[str], stdin: int | None = None) -> None:
        """Start it. The calling process must have one thread.

        Args:
            stdin: as for `subprocess.Popen`; None: ours.

        Raises:
            OSError: there is no such program.
        """
        self._status, write = os.pipe2(os.O_CLOEXEC)
        keeper = os.fork()
        if not keeper:
            _keep(argv, stdin, write)
        os.close(write)
        head = os.read(self._status, _STARTED.size)
        pid, code = _STARTED.unpack(head) if head else (0, 0)
        self.pid: int = pid
        if not self.pid:
            os.close(self._status)
            raise OSError(code, os.strerror(code), argv[0])

    def status(self) -> int | None:
        """How the command ended, which it has: exit code, or minus a signal. None: not known."""
        raw = os.read(self._status, 4)
        return os.waitstatus_to_exitcode(int.from_bytes(raw, "little")) if len(raw) == 4 else None


def _keep(argv: Sequence[str], stdin: int | None, write: int) -> NoReturn:
    try:
        os.setsid()
        child = subprocess.Popen(
            argv, stdin=stdin, start_new_session=True
        )  # kept, since dropping it collects
        os.write(write, _STARTED.pack(child.pid, 0))
        # Nothing of ours stays open by it: a terminal, a pipe's end, a lock, a working directory.
        os.closerange(0, write)
        os.closerange(write + 1, 1 << 20)
        os.chdir("/")
        lib.ut_keep(child.pid, write)
    except OSError as error:
        os.write(write, _STARTED.pack(0, error.errno or 0))
    finally:
        os._exit(1)
