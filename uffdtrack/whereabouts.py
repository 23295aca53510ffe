"""Where threads are that do not stop, and whether the kernel keeps a process frozen."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from uffdtrack import procfs

_STATES = {
    "R": "runnable",
    "S": "asleep",
    "D": "in an uninterruptible wait",
    "T": "stopped by a signal",
    "t": "traced",
    "Z": "ended",
}


def describe_threads(pid: int, tids: Iterable[int]) -> str:
    """Text for people: which threads, and where in the kernel they are, as far as we may know."""
    return "; ".join(_describe(pid, tid) for tid in tids)


def _describe(pid: int, tid: int) -> str:
    def read(name: str) -> str:
        return procfs.glance(f"{procfs.task(pid, tid)}/{name}")

    state = procfs.stat_fields_of(read("stat"))
    if not state:
        return f"thread {tid}, which has ended"
    words = [_STATES.get(state[0], f"in state {state[0]}")]
    waits = read("wchan")
    if waits not in ("", "0"):
        words.append(f"in the kernel's {waits}")
    call = read("syscall").split()
    if call and call[0].isdigit():
        words.append(f"in system call {call[0]}")
    return f"thread {tid} ({read('comm')}: {', '.join(words)})"


def frozen_cgroup(pid: int) -> str | None:
    """The frozen cgroup that a process is in (cgroups(7): freezer of v1, cgroup.freeze of v2), if any.

    A thread of it cannot be stopped (v1), or makes no system call (v2), until the thaw.
    """
    for controllers, path in _memberships(pid):
        for root in _mounts(controllers):
            place = Path(root + path)
            if controllers and procfs.glance(place / "freezer.state") in ("FROZEN", "FREEZING"):
                return path
            if controllers:
                continue
            for at in (place, *place.parents):
                if not str(at).startswith(root):
                    break
                if procfs.glance(at / "cgroup.freeze") == "1":
                    return str(at)[len(root) :] or "/"
    return None


def _memberships(pid: int) -> list[tuple[str, str]]:
    """The path of the process's cgroup: in v2 (""), and in the freezer of v1."""
    found = []
    for line in procfs.glance(f"/proc/{pid}/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "freezer" in controllers.split(","):
            found.append(("" if number == "0" else "freezer", os.path.normpath(path)))
    return found


def _mounts(controllers: str) -> list[str]:
    """Where that hierarchy is mounted as a whole (proc_pid_mountinfo(5))."""
    found = []
    for line in procfs.glance("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        is_v2 = kind == "cgroup2"
        wanted = (
            is_v2
            if not controllers
            else kind == "cgroup" and controllers in options.split(" ")[-1].split(",")
        )
        if wanted and before.split(" ")[3] == "/":
            found.append(before.split(" ")[4].encode().decode("unicode_escape").rstrip("/"))
    return found
