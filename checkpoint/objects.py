"""A process's state in the kernel beside its memory. Pure: text in, facts out.

A rollback restores none of it. An epoch stores it so that a rollback can name what differs, or refuse to
tear the program.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from checkpoint.row import Row
from uffdtrack import procfs

STATUS = (
    "Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
    "Seccomp", "ShdPnd", "SigIgn", "SigCgt", "Mems_allowed_list",
)  # fmt: skip
"""Fields of /proc/PID/status that system calls of the process change (proc_pid_status(5))."""
IO_URING = "anon_inode:[io_uring]"
_RING = ("ino", "SqTail", "SqHead", "CqTail", "CqHead")
"""Which ring it is, and the counts of entries submitted, taken, completed and reaped (io_uring(7))."""
_WATCHES: dict[str, str | tuple[str, ...]] = {
    "anon_inode:[eventpoll]": "tfd:",
    "anon_inode:inotify": "inotify wd:",
    "anon_inode:[fanotify]": ("fanotify ino:", "fanotify mnt_id:", "fanotify sdev:"),
}
_SECOND = 10**9
TOLERANCE_NS = 100_000_000
"""Two readings of when a timer fires may differ by this: /proc only tells the time that is left."""


class Descriptor(NamedTuple):
    """One open file.

    Attributes:
        target: what /proc/PID/fd says it is.
        offset: in the file, -1 if it has no name.
        flags: of open(2), -1 if not known.
        facts: what the kernel says of this kind of object, see docs/image.md.
    """

    number: int
    target: str
    offset: int = -1
    flags: int = -1
    facts: dict[str, Any] = {}  # noqa: RUF012 - of a NamedTuple; it is never changed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A process's state in the kernel at one time."""

    descriptors: dict[int, Descriptor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


# -- in an image ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ObjectFacts(Row):
    """What an epoch stores of a snapshot.

    Attributes:
        closed: numbers of descriptors that are no longer open; None: these facts are complete, no increment.
        state: None for what is gone.
    """

    among: ClassVar[bool] = True

    descriptors: Sequence[Sequence[Any]]
    closed: list[int] | None = None
    state: dict[str, Any] | None = None


def increment(before: Snapshot | None, now: Snapshot) -> ObjectFacts:
    """What an epoch stores of `now`, if the epoch that it follows has `before`; None: all of it."""
    if before is None:
        return ObjectFacts(sorted(now.descriptors.values()), state=now.state)
    if now is before:
        return ObjectFacts([], [], {})
    old, new = before.descriptors, now.descriptors
    return ObjectFacts(
        sorted(d for number, d in new.items() if old.get(number) != d),
        sorted(old.keys() - new.keys()),
        {
            key: now.state.get(key)
            for key in sorted(before.state.keys() | now.state.keys())
            if before.state.get(key) != now.state.get(key)
        },
    )


def resolve(stored: Iterable[ObjectFacts]) -> Snapshot:
    """The snapshot of the last of these epochs, from the stored facts of all from a base on."""
    descriptors: dict[int, Descriptor] = {}
    state: dict[str, Any] = {}
    for facts in stored:
        if facts.closed is None:
            descriptors, state = {}, {}
        for number in facts.closed or ():
            descriptors.pop(number, None)
        for entry in facts.descriptors:
            descriptors[entry[0]] = Descriptor(*entry)
        for key, value in (facts.state or {}).items():
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
    return Snapshot(descriptors, state)


# -- files of /proc ------------------------------------------------------------------------------------


def parse_descriptor(
    number: int, target: str, info: str, clock_ns: int = 0, before: Descriptor | None = None
) -> Descriptor:
    """One descriptor from its link and its fdinfo (proc_pid_fdinfo(5)), read at `clock_ns`.

    Args:
        before: what it was at an earlier reading; returned if nothing has changed.
    """
    words = info.split()
    if len(words) == 8 and target not in _WATCHES:  # position, flags, mount and inode: all that most have
        offset, flags = int(words[1]) if target[0] == "/" else -1, int(words[3], 8)
        if before and before[1:4] == (target, offset, flags) and before.facts.keys() <= {"kind"}:
            return before
        return Descriptor(number, target, offset, flags)
    lines = info.splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    offset = int(fields.get("pos", "-1")) if target.startswith("/") else -1
    facts: dict[str, Any] = {}
    if target == "anon_inode:[eventfd]":
        facts["count"] = int(fields.get("eventfd-count", "0"), 16)
    elif target == "anon_inode:[signalfd]":
        facts["sigmask"] = fields.get("sigmask", "").strip()
    elif target == "anon_inode:[timerfd]":
        facts["timer"] = _timer(fields, clock_ns)
    elif target == IO_URING:
        facts["ring"] = [fields.get(key, "").strip() for key in _RING]
    elif target == "anon_inode:[pidfd]":
        facts["pid"] = fields.get("Pid", "").strip()
    elif target in _WATCHES:
        facts["watches"] = _watches([line for line in lines if line.startswith(_WATCHES[target])])
    # "lock:	1: FLOCK ...": the number is of this listing.
    locks = [line.split(":", 2)[2].split() for line in lines if line.startswith("lock:")]
    if locks:
        facts["locks"] = sorted(" ".join(words) for words in locks)
    return Descriptor(number, target, offset, int(fields.get("flags", "-1"), 8), facts)


def _timer(fields: dict[str, str], clock_ns: int) -> list[int]:
    """Clock, unread expirations; when it fires (0: it does not), and the interval, in ns."""

    def pair(name: str) -> int:
        seconds, ns = (int(n) for n in re.findall(r"\d+", fields.get(name, "(0, 0)")))
        return seconds * _SECOND + ns

    left = pair("it_value")
    due = clock_ns + left if left else 0
    return [int(fields.get("clockid", "0")), int(fields.get("ticks", "0")), due, pair("it_interval")]


def same_timer(a: list[int], b: list[int]) -> bool:
    """Whether a timerfd fires as it would have: neither set anew, nor fired once for all."""
    (clock, ticks, due, interval), (clock2, ticks2, due2, interval2) = a, b
    if (clock, interval, bool(due)) != (clock2, interval2, bool(due2)):
        return False
    if not due:
        return ticks == ticks2
    apart = due2 - due
    if interval:
        apart = (apart + interval // 2) % interval - interval // 2
    return abs(apart) < TOLERANCE_NS


def _watches(lines: list[str]) -> list[Any]:
    """How many watches there are, and a digest of them without the offsets of files."""
    text = "\n".join(sorted(re.sub(r" pos:\S+", "", line) for line in lines))
    return [len(lines), hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()]


def parse_status(text: str) -> dict[str, str]:
    """The fields of `STATUS`."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key: " ".join(fields[key].split()) for key in STATUS if key in fields}


def parse_io(text: str) -> list[int]:
    """Bytes read and written by read(2), write(2) and their kin (proc_pid_io(5))."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return [int(fields["rchar"]), int(fields["wchar"])]


def parse_limits(text: str) -> dict[str, str]:
    """Soft and hard limit by name."""
    rows = (re.split(r"  +", line.strip()) for line in text.splitlines()[1:])
    return {row[0]: f"{row[1]} {row[2]}" for row in rows if len(row) >= 3}


def parse_stat(text: str) -> list[Any]:
    """A thread's name, nice value, real-time priority, policy and pending signals (proc_pid_stat(5))."""
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = procfs.stat_fields_of(text)
    return [name, int(fields[16]), int(fields[37]), int(fields[38]), int(fields[28])]


def parse_timers(text: str) -> list[str]:
    """POSIX timers (timer_create(2)): one line each, with id, signal and clock."""
    timers: list[str] = []
    for line in text.splitlines():
        if line.startswith("ID:"):
            timers.append(line.split(":")[1].strip())
        elif line.startswith(("signal:", "ClockID:")) and timers:
            # "signal: 14/0000000012345678": the value behind is an address or a number of the program's.
            timers[-1] += f" {line.split(':')[0].lower()} {line.split(':')[1].strip().split('/')[0]}"
    return sorted(timers)


def parse_queues(text: str, pid: int) -> dict[str, str]:
    """System V message queues that a process was the last to send to or to receive from."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return {
        row[1]: f"{row[4]} messages, sent {row[11]}, received {row[12]}"
        for row in rows
        if len(row) >= 13 and str(pid) in row[5:7]
    }


def parse_aio_ring(head: bytes) -> list[int]:
    """Head and tail of the ring of an aio context, from the first bytes of its mapping (fs/aio.c).

    Raises:
        ValueError: it is no such ring.
    """
    _, _, first, end, magic = struct.unpack_from("<5I", head)
    if magic != 0xA10A10A1:
        raise ValueError("not a ring of aio")
    return [first, end]
