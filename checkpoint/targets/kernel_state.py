"""Read a process's state in the kernel beside its memory, from /proc. The process may run meanwhile.

Nothing here asks a file system that may not answer, like the target's own (FUSE): a rollback reads the state
while the target stands.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from checkpoint.budget import Budget
from checkpoint.objects import (
    Descriptor,
    Snapshot,
    parse_aio_ring,
    parse_descriptor,
    parse_io,
    parse_limits,
    parse_queues,
    parse_stat,
    parse_status,
    parse_timers,
    same_timer,
)
from uffdtrack import (
    Region,
    file_mode,
    how_to_be_allowed,
    open_files,
    parse_maps,
    procfs,
    task_directory,
)
from uffdtrack.errors import PermissionDeniedError, TargetGoneError

T = TypeVar("T")
_QUEUE_SIZE = 80  # of every file of a POSIX message queue (FILENT_SIZE, ipc/mqueue.c)
SHARE = 1 / 10
"""Of the time, for all processes of a tree together."""


def read_descriptors(
    pid: int, before: Snapshot | None = None, of: Path | None = None
) -> dict[int, Descriptor]:
    """The open files of a process, by number.

    Args:
        before: an earlier reading; facts that cannot change are taken from it.
        of: /proc/PID/task/TID of a thread that is known to live.

    Raises:
        TargetGoneError, PermissionDeniedError: as they say.
    """
    known = before.descriptors if before else {}
    task = of or task_directory(pid)
    found: dict[int, Descriptor] = {}
    try:
        with _directory(task / "fd") as links:
            for number, clock, target, info in open_files(task, pid):
                old = known.get(number)
                entry = parse_descriptor(number, target, info, clock, old)
                found[number] = entry if entry is old else _with_kind(entry, old, task, links)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError(f"process {pid} has ended") from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"not allowed to look into process {pid}. {how_to_be_allowed(pid)}"
        ) from error
    return found


def _with_kind(entry: Descriptor, known: Descriptor | None, task: Path, links: int) -> Descriptor:
    """Add the kind, if /proc/PID/fd does not tell it: of sockets, FIFOs, devices, queues."""
    target = entry.target
    timer = known.facts.get("timer") if known else None
    if known and timer and same_timer(timer, entry.facts.get("timer", timer)):
        return known._replace(flags=entry.flags)  # or each reading would store it again
    if not target.startswith(("/", "socket:")):
        return entry
    file = task / "fd" / str(entry.number)
    kind = known.facts.get("kind", "") if known and known.target == target else None
    if kind is None:
        kind = _protocol(file) if target[0] == "s" else _kind_of_file(entry, links)
    facts: dict[str, Any] = {"kind": kind}
    if kind == "queue":
        text = ""
        with contextlib.suppress(OSError, UnicodeError):
            text = file.read_text()
        if not text.startswith("QSIZE:"):
            return entry
        facts["bytes"] = int(text.split()[0][6:])
    return entry._replace(facts={**entry.facts, **facts}) if kind else entry


def _protocol(file: Path) -> str:
    try:
        return os.getxattr(file, "system.sockprotoname").rstrip(b"\0").decode()
    except OSError:
        return "unknown"


def _kind_of_file(entry: Descriptor, links: int) -> str:
    mode, size = file_mode(links, str(entry.number))
    if stat.S_ISFIFO(mode):
        return "fifo"
    if stat.S_ISCHR(mode):
        return "device"
    return "queue" if size == _QUEUE_SIZE and re.fullmatch(r"/[^/]+", entry.target) else ""


@contextlib.contextmanager
def _directory(path: Path) -> Any:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read_state(pid: int, mappings: Iterable[Region]) -> dict[str, Any]:
    """What the process has set by system calls, and how much it has read and written.

    Facts that this host does not tell, or not to us, are left out.

    Args:
        mappings: all mappings, or at least aio contexts.
    """
    task = task_directory(pid)
    state: dict[str, Any] = {"time_ns": time.time_ns()}

    def put(key: str, path: str, parse: Callable[[str], Any]) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            state[key] = parse(procfs.read(path, directory).decode(errors="replace"))

    process = f"/proc/{pid}"
    with contextlib.suppress(OSError), _directory(task) as directory:
        put("status", "status", parse_status)
        put("limits", "limits", parse_limits)
        put("io", f"{process}/io", parse_io)
        put("timers", f"{process}/timers", parse_timers)
        put("oom_score_adj", f"{process}/oom_score_adj", str.strip)
        put("personality", "personality", str.strip)
        put("cgroup", "cgroup", str.strip)
        put("queues", "/proc/sysvipc/msg", lambda text: parse_queues(text, pid))
        for key in ("cwd", "root"):
            with contextlib.suppress(OSError):
                state[key] = os.readlink(key, dir_fd=directory)
        with contextlib.suppress(OSError), _directory(task / "ns") as spaces:
            state["namespaces"] = {name: os.readlink(name, dir_fd=spaces) for name in os.listdir(spaces)}
    state |= _state_of_aio(task, mappings)
    _read_threads(f"{process}/task", state)
    return state


def _state_of_aio(task: Path, mappings: Iterable[Region]) -> dict[str, Any]:
    rings = [region.start for region in mappings if region.name.startswith("/[aio]")]
    return {"aio": _read_aio(task, rings)} if rings else {}


def _read_aio(task: Path, addresses: list[int]) -> dict[str, list[int]]:
    rings = {}
    with contextlib.suppress(OSError), (task / "mem").open("rb", buffering=0) as memory:
        for address in addresses:
            with contextlib.suppress(OSError, ValueError):
                rings[f"{address:#x}"] = parse_aio_ring(os.pread(memory.fileno(), 20, address))
    return rings


def _read_threads(tasks: str, state: dict[str, Any]) -> None:
    threads: dict[str, list[Any]] = {}
    children: list[int] = []
    complete = True
    for name in os.listdir(tasks):
        try:
            threads[name] = [
                *parse_stat(procfs.read(f"{tasks}/{name}/stat").decode(errors="replace")),
                sorted(os.sched_getaffinity(int(name))),
            ]
            children += map(int, procfs.read(f"{tasks}/{name}/children").split())
        except FileNotFoundError:
            complete = False  # it has just ended, or the kernel has no such file (CONFIG_PROC_CHILDREN)
        except (OSError, ValueError, IndexError):
            continue
    state["threads"] = threads
    if complete:
        state["children"] = sorted(children)


def snapshot(
    pid: int,
    mappings: Iterable[Region],
    before: Snapshot | None = None,
    state: dict[str, Any] | None = None,
    of: Path | None = None,
) -> Snapshot:
    """Read all of it; see `read_descriptors` and `read_state`.

    Args:
        state: what `read_state` said a moment ago: only aio contexts are read again.
        of: see `read_descriptors`.
    """
    descriptors = read_descriptors(pid, before, of)
    if state is None:
        return Snapshot(descriptors, read_state(pid, mappings))
    return Snapshot(descriptors, {**state, **_state_of_aio(of or task_directory(pid), mappings)})


def kernel_mappings(text: bytes) -> list[Region]:
    """The mappings that may be of a kernel object or a device, among all of /proc/PID/maps."""
    marks = (b"anon_inode:", b"/[aio]", b"socket:", b"/dev/", b"/sys/", b"/dmabuf", b"/secretmem")
    if not any(mark in text for mark in marks):
        return []
    lines = [line for line in text.split(b"\n") if any(mark in line for mark in marks)]
    return parse_maps(b"".join(b"%s\n" % line for line in lines).decode(errors="surrogateescape"))


def is_device(pid: int, region: Region) -> bool:
    """Whether a mapping below /dev is of a device: file systems are mounted there, too."""
    if region.name.endswith(" (deleted)"):
        return False
    try:
        with _directory(task_directory(pid) / "root") as root:
            mode, _ = file_mode(root, region.name.lstrip("/"))
    except OSError:
        return True
    # Memory of a PCI device is a regular file of sysfs.
    return not mode or stat.S_ISCHR(mode) or region.name.startswith("/sys/")


class Reader(Generic[T]):
    """Snapshots of one process for its epochs, at a bounded cost, and what is read together with them.

    /proc has no cheap way to ask whether any of many thousand descriptors has changed: each costs a look
    of some 10 us. If that is much, an epoch repeats the last reading, and says when that was.
    """

    def __init__(self, pid: int, beside: Callable[[], T]) -> None:
        """Args:
        beside: reads what belongs to a snapshot.
        """
        self._pid = pid
        self._beside = beside
        self.budget = Budget(SHARE)
        self._last: tuple[Snapshot, T] | None = None

    def read(self, mappings: Iterable[Region]) -> tuple[Snapshot, T]:
        if self._last is None or self.budget.is_due():
            with self.budget.spending():
                before = self._last[0] if self._last else None
                self._last = snapshot(self._pid, mappings, before), self._beside()
        return self._last
