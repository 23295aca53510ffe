"""Files of /proc that may be missing: a process that has ended, or that we may not look at, has none."""

from __future__ import annotations

import os
from pathlib import Path

_BLOCK = 1 << 16


def read(path: str | Path, directory: int | None = None) -> bytes:
    """Read a whole file, with three system calls if it is short: some are read after each stop.

    Args:
        directory: a descriptor that `path` is relative to.

    Raises:
        OSError: as open(2), read(2).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        parts = [os.read(fd, _BLOCK)]
        while parts[-1]:
            parts.append(os.read(fd, _BLOCK))
    finally:
        os.close(fd)
    return b"".join(parts)


def glance(path: str | Path) -> str:
    """Read a short text, without the white space around it; "" if we cannot."""
    try:
        return read(path).decode(errors="surrogateescape").strip()
    except OSError:
        return ""


def task(pid: int, tid: int) -> str:
    """The directory of a thread."""
    return f"/proc/{pid}/task/{tid}"


def threads(pid: int) -> list[int]:
    """The threads that a process has just now."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def field(text: str, name: str) -> str:
    """One field of a status file (proc_pid_status(5)), "" if it has none of that name."""
    for line in text.split("\n"):
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def stat_fields_of(text: str) -> list[str]:
    """A stat file from the state on: index 0 is field 3 of proc_pid_stat(5)."""
    return text.rpartition(")")[2].split()
