"""Text about how a process's state in the kernel differs from that at an epoch. Pure.

`torn` names objects that go on with memory of the process, or have one half of something whose other half is
in memory: a rollback of the memory alone tears the program. `differences` names what the program may bear.
"""

from __future__ import annotations

import signal
from typing import Any

from checkpoint.objects import Descriptor, Snapshot, same_timer
from checkpoint.rollback.torn import SHOWN, describe_descriptor, listed

OLD = 0.5
"""If so many seconds lie between a reading and its epoch, we say so."""

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


def _many(descriptors: list[Descriptor]) -> str:
    return f"file descriptor{'s' * (len(descriptors) > 1)} {listed(map(describe_descriptor, descriptors))}"


# -- refused -------------------------------------------------------------------------------------------


# -- named ---------------------------------------------------------------------------------------------


def differences(then: Snapshot, now: Snapshot, taken_ns: int = 0) -> list[str]:
    """One line for each other kind of state that is not as it was.

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
    text = listed(f"of file descriptor {describe_descriptor(d)} was {a} and is {b}" for d, a, b in pairs)
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
    """Pipes and sockets: data that went through one leave no trace in it.

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
