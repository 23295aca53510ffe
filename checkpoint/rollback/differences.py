"""What of a process's state in the kernel is not as it was at an epoch, in words. Pure.

`torn` are objects that go on with memory of the process, or hold half of what the other half in memory must
agree with: a rollback of the memory alone tears the program. `differences` is what it may bear.
"""

from __future__ import annotations

import functools
import re
import signal
from collections.abc import Callable, Iterable
from typing import Any

from checkpoint.objects import IO_URING, Descriptor, Snapshot, same_timer
from uffdtrack import Region

OLD = 0.5
"""Seconds between a reading and its epoch that are worth a word."""
SHOWN = 3
"""How many of a long list are named."""

_QUEUES = "its queues lie in memory, and the kernel or a device goes on where they are now"
_DEVICE = "what the device holds, and what it writes into memory, stays as it is now"
TORN = (
    (r"anon_inode:\[?(kvm-(vm|vcpu)|mshv_)|/dev/(vboxdrv|vmmon|nsm)", "a virtual machine",
     "the registers of its vCPUs and its devices stay as they are now"),
    (r"anon_inode:\[io_uring\]", "an io_uring", _QUEUES),
    (r"anon_inode:\[userfaultfd\]", "a userfaultfd", "who waits for a page, and what is registered, stays"),
    (r"/dev/vhost-|/dev/vduse|/dev/ublkc", "a vhost device", _QUEUES),
    (r"/dev/(dri/|nvidia|kfd|dxg|accel/|mali|udmabuf|dma_heap/)|anon_inode:(i915|drm)", "a GPU", _DEVICE),
    (r"/dev/infiniband/|anon_inode:\[(infiniband|uverbs)", "an RDMA device", _DEVICE),
    (r"/dev/(vfio/|iommu)|anon_inode:\[?vfio", "a device that it drives itself (VFIO)", _DEVICE),
    (r"/dev/bus/usb/", "a USB device", _DEVICE),
)  # fmt: skip
"""Descriptor or mapping, by what /proc says it is; what it is; why it must not be torn."""
TORN_MAPPED = (
    (r"/\[aio\]", "an aio context", _QUEUES),
    (r"anon_inode:\[perf_event\]", "a perf ring", _QUEUES),
    (r"anon_inode:\[?bpf[-_]map", "memory that it shares with a BPF program", "the program goes on in it"),
    (r"socket:", "a ring of a socket (AF_PACKET, AF_XDP)", _QUEUES),
    (r"/secretmem", "memory that nobody else can read (memfd_secret)", "it stays as it is now"),
    (r"anon_inode:|/dmabuf", "memory of a kernel object", "it stays as it is now"),
)
"""Mappings alone: the same objects without one hold nothing that memory has to agree with."""
_QUIET_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/kvm")

_CREDENTIALS = (
    "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
)  # fmt: skip
_NAMED = {
    "Umask": "umask",
    "Mems_allowed_list": "list of allowed memory nodes",
    **{key: key for key in _CREDENTIALS},
}
_OF_THREAD = (
    "name", "nice value", "real-time priority", "scheduling policy", "pending signals", "processors",
)  # fmt: skip
_ANY = re.compile("|".join((*(row[0] for row in (*TORN, *TORN_MAPPED)), "/dev/", "/sys/")))


State = tuple[Snapshot, Iterable[Region]]
"""What there is at one time: a snapshot, and the mappings."""


def listed(items: Iterable[str]) -> str:
    """`a, b, c and 7 more`."""
    items = list(items)
    rest = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _descriptor(d: Descriptor) -> str:
    kind = d.facts.get("kind", "") if d.target.startswith("socket:") else ""
    return f"{d.number} ({kind + ' ' if kind else ''}{d.target})"


def _many(descriptors: list[Descriptor]) -> str:
    return f"file descriptor{'s' * (len(descriptors) > 1)} {listed(map(_descriptor, descriptors))}"


# -- refused -------------------------------------------------------------------------------------------


def torn(then: State, now: State, is_device: Callable[[Region], bool]) -> list[str]:
    """What a rollback would tear, of what there was or is: each object, and why.

    Args:
        then, now: the snapshot and the mappings of the epoch, and of now.
        is_device: whether a mapping with the name of one is of a device, not of a file system mounted there.
    """
    found: dict[tuple[str, str], list[str]] = {}
    idle = _idle(then[0], now[0])
    for snapshot, _ in (then, now):
        for d in snapshot.descriptors.values():
            kind = _torn_descriptor(d.target) if d.target.startswith(("anon_inode:", "/dev/")) else None
            if kind and d.target not in idle:
                found.setdefault(kind, []).append(f"file descriptor {_descriptor(d)}")
    for _, regions in (then, now):
        for region in regions:
            kind = _torn_mapping(region, is_device)
            if kind and not {region.name, f"{region.start:#x}"} & idle:
                found.setdefault(kind, []).append(f"mapping {region.start:#x} ({region.name})")
    return [f"{what}, {listed(dict.fromkeys(where))}: {why}" for (what, why), where in found.items()]


def _idle(then: Snapshot, now: Snapshot) -> set[str]:
    """Rings that nothing was put into or taken out of since: they agree with the memory of then, too.

    Many programs have an io_uring or an aio context that they never use (nginx, libuv).
    """
    rings = [
        {n: d.facts.get("ring") for n, d in s.descriptors.items() if d.target == IO_URING}
        for s in (then, now)
    ]
    idle: set[str] = set()
    if rings[0] == rings[1] and all(ring and all(ring) for ring in rings[0].values()):
        idle |= {IO_URING} if rings[0] else set()
    a, b = then.state.get("aio", {}), now.state.get("aio", {})
    return idle | {address for address in a if a[address] == b.get(address)}


def _kind(table: Iterable[tuple[str, str, str]], name: str) -> tuple[str, str] | None:
    return next(((what, why) for pattern, what, why in table if re.match(pattern, name)), None)


@functools.cache
def _torn_descriptor(target: str) -> tuple[str, str] | None:
    return _kind(TORN, target)


def _torn_mapping(region: Region, is_device: Callable[[Region], bool]) -> tuple[str, str] | None:
    if not _ANY.match(region.name):
        return None
    kind = _kind((*TORN, *TORN_MAPPED), region.name)
    if kind or region.kind != "device":
        return kind
    return ("memory of a device", _DEVICE) if is_device(region) else None


# -- named ---------------------------------------------------------------------------------------------


def differences(then: Snapshot, now: Snapshot, taken_ns: int = 0) -> list[str]:
    """What else is not as it was, one line for each kind.

    Args:
        taken_ns: when the epoch was taken; `then` may have been read some time before.
    """
    a, b = then.descriptors, now.descriptors
    both = [(a[n], b[n]) for n in sorted(a.keys() & b.keys())]
    same = [(x, y) for x, y in both if x.target == y.target]
    other = [(x, y) for x, y in both if x.target != y.target]
    words = _opened_and_closed(a, b)
    words += [f"file descriptor {x.number} was {x.target} and is {y.target}" for x, y in other[:SHOWN]]
    if len(other) > SHOWN:
        words.append(f"{len(other) - SHOWN} more file descriptors are of another file than they were")
    words += _moved(same)
    words += _objects(same)
    words += _traffic(same, then, now)
    words += _process(then.state, now.state)
    age = (taken_ns - then.state.get("time_ns", taken_ns)) / 1e9
    if words and age > OLD:
        words.append(f"what it had in the kernel was read {age:.1f} s before that epoch was taken")
    return words


def _opened_and_closed(a: dict[int, Descriptor], b: dict[int, Descriptor]) -> list[str]:
    words = []
    for what, numbers, of in (("closed", a.keys() - b.keys(), a), ("opened", b.keys() - a.keys(), b)):
        if numbers:
            have = "have" if len(numbers) > 1 else "has"
            words.append(f"{_many([of[n] for n in sorted(numbers)])} {have} been {what} since")
    return words


def _changed(what: str, pairs: list[tuple[Descriptor, Any, Any]]) -> list[str]:
    if not pairs:
        return []
    text = listed(f"of file descriptor {_descriptor(d)} was {a} and is {b}" for d, a, b in pairs)
    return [f"the {what} {text}"]


def _moved(same: list[tuple[Descriptor, Descriptor]]) -> list[str]:
    # A FIFO, a device and a queue have no offset of their own.
    offsets = [
        (x, x.offset, y.offset)
        for x, y in same
        if x.offset != y.offset and x.facts.get("kind") in (None, "device")
    ]
    known = [(x, y) for x, y in same if x.flags >= 0 <= y.flags]
    flags = [(x, f"{x.flags:#o}", f"{y.flags:#o}") for x, y in known if x.flags != y.flags]
    return _changed("offset", offsets) + _changed("open mode", flags)


def _objects(same: list[tuple[Descriptor, Descriptor]]) -> list[str]:
    words = []
    for key, what in (
        ("count", "counter"),
        ("sigmask", "set of signals"),
        ("pid", "process"),
        ("bytes", "number of bytes in the queue"),
    ):
        pairs = [(x, x.facts[key], y.facts[key]) for x, y in same if key in x.facts and key in y.facts]
        words += _changed(what, [p for p in pairs if p[1] != p[2]])
    watches = [
        (x, f"of {x.facts['watches'][0]}", f"of {y.facts['watches'][0]}, or of others")
        for x, y in same
        if "watches" in x.facts and x.facts["watches"] != y.facts.get("watches")
    ]
    words += _changed("set of watches", watches)
    locks = [y for x, y in same if x.flags >= 0 and x.facts.get("locks") != y.facts.get("locks")]
    if locks:
        words.append(f"the locks on files are not what they were: {_many(locks)}")
    armed = [
        (y, x.facts["timer"], y.facts["timer"]) for x, y in same if {"timer"} <= x.facts.keys() & y.facts
    ]
    timers = [y for y, a, b in armed if not same_timer(a, b)]
    if timers:
        words.append(f"timers have been set or have fired since: {_many(timers)}")
    return words


def _traffic(same: list[tuple[Descriptor, Descriptor]], then: Snapshot, now: Snapshot) -> list[str]:
    """Pipes and sockets: what went through one leaves no trace in it.

    The process's own counts of bytes show that something went through something. Calls of sockets alone
    (recv(2), send(2)) are in no count.
    """
    words = []
    a, b = then.state.get("io"), now.state.get("io")
    pipes = [
        y
        for _, y in same
        if y.target.startswith("pipe:")
        or y.facts.get("kind") == "fifo"
        or (y.facts.get("kind") == "device" and y.target not in _QUIET_DEVICES)
    ]
    if pipes and a and b and a != b:
        words.append(
            f"{b[0] - a[0]} bytes have been read and {b[1] - a[1]} written since; what of them went through "
            f"{_many(pipes)} is not undone"
        )
    sockets = [y for _, y in same if y.target.startswith("socket:")]
    if sockets:
        words.append(f"what has been sent and received since by {_many(sockets)} is not undone")
    return words


# -- the process ---------------------------------------------------------------------------------------


def _process(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    a, b = then.get("status", {}), now.get("status", {})
    words = [
        f"{name} was {a[key] or 'empty'} and is {b[key] or 'empty'}"
        for key, name in _NAMED.items()
        if key in a and key in b and a[key] != b[key]
    ]
    words += _signals(a, b)
    for key, name in (
        ("cwd", "the working directory"),
        ("root", "the root directory"),
        ("oom_score_adj", "oom_score_adj"),
        ("personality", "the personality"),
        ("cgroup", "the cgroup"),
    ):
        if key in then and key in now and then[key] != now[key]:
            words.append(f"{name} was {then[key]} and is {now[key]}")
    for key, name in (
        ("limits", "resource limits"),
        ("namespaces", "namespaces"),
        ("queues", "System V message queues"),
    ):
        if key in then and key in now and then[key] != now[key]:
            words.append(f"{name} are not what they were: {listed(_of_dicts(then[key], now[key]))}")
    if "timers" in then and "timers" in now and then["timers"] != now["timers"]:
        counts = f"{len(then['timers'])} then, {len(now['timers'])} now"
        words.append(f"POSIX timers have been made or deleted since: {counts}")
    words += _children(then, now)
    words += _threads(then.get("threads", {}), now.get("threads", {}))
    return words


def _of_dicts(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return [
        f"{key} was {a.get(key, 'not there')} and is {b.get(key, 'not there')}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def signal_names(mask: int) -> list[str]:
    def name(number: int) -> str:
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"signal {number}"

    return [name(n) for n in range(1, 65) if mask >> (n - 1) & 1]


def _signals(a: dict[str, str], b: dict[str, str]) -> list[str]:
    words = []
    acts = [
        int(a[key], 16) ^ int(b[key], 16) for key in ("SigCgt", "SigIgn") if key in a and key in b
    ]  # what is caught, what is ignored
    changed = 0
    for mask in acts:
        changed |= mask
    if changed:
        words.append(f"the actions for signals are not what they were: {listed(signal_names(changed))}")
    if a.get("ShdPnd") != b.get("ShdPnd") and "ShdPnd" in a and "ShdPnd" in b:
        pending = int(a["ShdPnd"], 16) ^ int(b["ShdPnd"], 16)
        words.append(f"signals pending then or now, not both: {listed(signal_names(pending))}")
    return words


def _children(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    if "children" not in then or "children" not in now:
        return []
    a, b = set(then["children"]), set(now["children"])
    words = []
    for what, pids in (("gone", a - b), ("born", b - a)):
        if pids:
            words.append(f"child processes {what} since: {listed(map(str, sorted(pids)))}")
    return words


def _threads(a: dict[str, list[Any]], b: dict[str, list[Any]]) -> list[str]:
    words = []
    for i, what in enumerate(_OF_THREAD):
        tids = [tid for tid in sorted(a.keys() & b.keys()) if a[tid][i] != b[tid][i]]
        changed = [f"{tid} ({a[tid][i]} then, {b[tid][i]} now)" for tid in tids]
        if changed:
            words.append(f"the {what} of threads is not what it was: {listed(changed)}")
    return words
