"""Files of /proc that may be missing: a process that has ended, or that we may not look at, has none."""

from __future__ import annotations

import os
from pathlib import Path


def glance(path: str | Path) -> str:
    """Read a short text, without the white space around it; "" if we cannot."""
    try:
        return Path(path).read_text(errors="surrogateescape").strip()
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
