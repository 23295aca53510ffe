"""Which process it is, and what /proc says of a living one."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from uffdtrack import how_to_be_allowed, task_directory
from uffdtrack.errors import PermissionDeniedError, TargetGoneError


@dataclass(frozen=True, slots=True)
class Identity:
    """Tells a process from every other one, also after its pid was used again."""

    pid: int
    start_time: int
    boot_id: str


def proc_read(pid: int, name: str) -> bytes:
    """A file of /proc/PID, as a living thread has it.

    Raises:
        TargetGoneError, PermissionDeniedError: as they say.
    """
    try:
        return (task_directory(pid) / name).read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError(f"there is no process {pid}") from error
    except PermissionError as error:
        raise PermissionDeniedError(f"cannot read /proc/{pid}/{name}. {how_to_be_allowed(pid)}") from error


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: index 0 is field 3 of proc_pid_stat(5).

    Raises:
        TargetGoneError: there is no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError(f"there is no process {pid}") from error
    return text[text.rindex(")") + 2 :].split()


def identify(pid: int) -> Identity:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Identity(pid, int(stat_fields(pid)[19]), boot)


def descriptors(pid: int) -> list[tuple[int, str]]:
    """The open files: number, and what /proc/PID/fd says it is."""
    found = []
    try:
        links = os.open(task_directory(pid) / "fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, TargetGoneError):
        return []
    except PermissionError as error:
        raise PermissionDeniedError(
            f"not allowed to look into process {pid}. {how_to_be_allowed(pid)}"
        ) from error
    try:
        for name in os.listdir(links):
            with contextlib.suppress(OSError):
                found.append((int(name), os.readlink(name, dir_fd=links)))
    except FileNotFoundError:
        pass  # it has called exec, or ended, since
    finally:
        os.close(links)
    return sorted(found)
