"""A process: its identity, whether it lives, and what /proc says of it."""

from __future__ import annotations

import contextlib
import os
import select
from dataclasses import dataclass
from pathlib import Path

from uffdtrack import procfs
from uffdtrack._sys import check, lib
from uffdtrack.closing import Closing
from uffdtrack.errors import PermissionDeniedError, TargetGoneError, UnsupportedError
from uffdtrack.rights import how_to_be_allowed


@dataclass(frozen=True, slots=True)
class Identity:
    """Tells a process from every other one, even after its pid is used again."""

    pid: int
    start_time: int
    boot_id: str


class Process(Closing):
    """A process, by a pidfd, until `close()`.

    Attributes:
        pid: its number, in our PID namespace.
        identity: tells it from every other process.
        pidfd: readable when it has ended (pidfd_open(2)); -1 after `close`.

    Raises:
        TargetGoneError: there is none.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = -1
        self.identity = identify(pid)
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise TargetGoneError(f"there is no process {pid}") from error

    def has_ended(self, seconds: float = 0) -> bool:
        """Whether it has ended, or does within some seconds.

        Its pidfd tells. Every other source says the same of a process that is just inside exec.
        """
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        """Idempotent."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def identify(pid: int) -> Identity:
    """The identity of the process that has that number now.

    Raises:
        TargetGoneError: none.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Identity(pid, int(stat_fields(pid)[19]), boot)


def task_directory(pid: int) -> Path:
    """/proc/PID/task/TID of a living thread.

    A first thread that has ended, while others go on, has no memory and no files in /proc/PID.

    Raises:
        TargetGoneError: no thread lives.
    """
    return Path(_task(pid))


def _task(pid: int) -> str:
    return procfs.task(pid, check(lib.ut_live_thread(pid), "find", pid))


def proc_read(pid: int, name: str) -> bytes:
    """Read a file of /proc/PID, from a living thread's directory.

    Raises:
        TargetGoneError, PermissionDeniedError: as they say.
    """
    return _read(pid, f"{_task(pid)}/{name}")


def _read(pid: int, path: str) -> bytes:
    try:
        return procfs.read(path)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError(f"there is no process {pid}") from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"cannot read /proc/{pid}/{os.path.basename(path)}. {how_to_be_allowed(pid)}"
        ) from error


def status_field(pid: int, name: str) -> str:
    """One field of the status of a living thread, "" if the kernel has no such field.

    Raises:
        TargetGoneError: there is no such process.
    """
    return procfs.field(proc_read(pid, "status").decode(errors="replace"), name)


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat of the process as a whole, from the state on: index 0 is field 3 of proc_pid_stat(5).

    Raises:
        TargetGoneError, PermissionDeniedError: as they say.
    """
    return procfs.stat_fields_of(_read(pid, f"/proc/{pid}/stat").decode(errors="replace"))


def command_name(pid: int) -> str:
    """The kernel's name of a process, "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="surrogateescape").removesuffix("\n")
    except OSError:
        return ""


def descriptors(pid: int) -> list[tuple[int, str]]:
    """The open files: number, and what /proc/PID/fd says of it; none if the process has ended.

    Raises:
        PermissionDeniedError: not allowed to look.
    """
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


def children(pid: int) -> list[int]:
    """The children of all threads of a process. If it runs, some may be missing (proc_pid_children(5)).

    Raises:
        UnsupportedError: the kernel does not say (CONFIG_PROC_CHILDREN).
        PermissionDeniedError: we may not know (proc(5), hidepid).
    """
    found: list[int] = []
    try:
        tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []
    except PermissionError as error:
        text = f"not allowed to see the children of process {pid}. {how_to_be_allowed(pid)}"
        raise PermissionDeniedError(text) from error
    for tid in tids:
        try:
            found += map(int, Path(f"{procfs.task(pid, tid)}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError) as error:
            if not Path("/proc/thread-self/children").exists():
                raise UnsupportedError(
                    "this kernel does not say which children a process has (CONFIG_PROC_CHILDREN)"
                ) from error
    return found


def dumps_core(pid: int) -> bool:
    """Whether the kernel is writing its core: its threads have been killed, and end when that is done."""
    return bool(lib.ut_dumps_core(pid))


def shares_memory(pid: int, other: int) -> bool:
    """Whether two processes share one memory, as far as we may know (kcmp(2))."""
    return int(lib.ut_same_memory(int(task_directory(pid).name), other)) == 1
