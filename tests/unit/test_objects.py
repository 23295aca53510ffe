"""What a process has in the kernel: files of /proc parsed, stored as increments, compared, put into words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.objects import (
    Descriptor,
    ObjectFacts,
    Snapshot,
    increment,
    parse_descriptor,
    parse_io,
    parse_limits,
    parse_queues,
    parse_stat,
    parse_status,
    parse_timers,
    resolve,
    same_timer,
)
from checkpoint.rollback.differences import differences, signal_names
from checkpoint.rollback.torn import SHOWN, listed
from checkpoint.targets import kernel_state
from uffdtrack import Region

HEAD = "pos:\t{pos}\nflags:\t{flags}\nmnt_id:\t17\nino:\t1038\n"


def info(rest: str = "", pos: int = 0, flags: str = "02") -> str:
    return HEAD.format(pos=pos, flags=flags) + rest


@pytest.mark.parametrize(
    ("target", "rest", "facts"),
    [
        ("pipe:[5]", "", {}),
        ("anon_inode:[eventfd]", "eventfd-count:               1f\neventfd-id: 3\neventfd-semaphore: 0\n",
         {"count": 31}),
        ("anon_inode:[signalfd]", "sigmask:\t0000000000000200\n", {"sigmask": "0000000000000200"}),
        ("anon_inode:[timerfd]", "clockid: 1\nticks: 2\nsettime flags: 00\nit_value: (4, 7)\n"
         "it_interval: (1, 0)\n", {"timer": [1, 2, 5_000_000_007, 1_000_000_000]}),
        ("anon_inode:[timerfd]", "clockid: 0\nticks: 1\nsettime flags: 01\nit_value: (0, 0)\n"
         "it_interval: (0, 0)\n", {"timer": [0, 1, 0, 0]}),
        ("anon_inode:[pidfd]", "Pid:\t-1\nNSpid:\t-1\n", {"pid": "-1"}),
        ("/x", "lock:\t1: FLOCK  ADVISORY  WRITE 7 fe:00:3 0 EOF\n",
         {"locks": ["FLOCK ADVISORY WRITE 7 fe:00:3 0 EOF"]}),
        ("anon_inode:bpf-prog", "prog_type:\t1\nrun_cnt:\t77\n", {}),
    ],
)  # fmt: skip
def test_descriptors(target: str, rest: str, facts: dict[str, Any]) -> None:
    found = parse_descriptor(3, target, info(rest, 9, "0100002"), 10**9)
    assert found == Descriptor(3, target, 9 if target[0] == "/" else -1, 0o100002, facts)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("anon_inode:[eventpoll]", "tfd:  {n} events: 19 data: 1  pos:{pos} ino:61 sdev:a\n"),
        ("anon_inode:inotify", "inotify wd:{n} ino:61 sdev:a mask:2 ignored_mask:0 fhandle-bytes:8\n"),
        ("anon_inode:[fanotify]", "fanotify ino:{n} sdev:a mflags:0 mask:8 ignored_mask:0\n"),
    ],
)
def test_watches(target: str, line: str) -> None:
    def watches(*numbers: int, pos: int = 0) -> Any:
        head = "fanotify flags:0 event-flags:0\n" if "fanotify" in target else ""
        rest = head + "".join(line.format(n=n, pos=pos) for n in numbers)
        return parse_descriptor(3, target, info(rest)).facts["watches"]

    assert watches()[0] == 0 and watches(1, 2)[0] == 2
    assert watches(1, 2) == watches(2, 1) == watches(1, 2, pos=7)
    assert watches(1, 2) != watches(1, 3)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([1, 0, 5 * 10**9, 0], [1, 0, 5 * 10**9 + 1000, 0], True),
        ([1, 0, 5 * 10**9, 0], [1, 0, 6 * 10**9, 0], False),  # set anew
        ([1, 0, 5 * 10**9, 0], [1, 1, 0, 0], False),  # has fired
        ([1, 1, 0, 0], [1, 0, 0, 0], False),  # was read
        ([1, 0, 0, 0], [1, 0, 0, 0], True),
        ([1, 0, 5 * 10**9, 10**9], [1, 3, 9 * 10**9 - 1000, 10**9], True),  # as it always does
        ([1, 0, 5 * 10**9, 10**9], [1, 0, 9 * 10**9 + 5 * 10**8, 10**9], False),
        ([1, 0, 5 * 10**9, 10**9], [1, 0, 5 * 10**9, 10**8], False),
        ([1, 0, 5 * 10**9, 0], [0, 0, 5 * 10**9, 0], False),
    ],
)
def test_timers(a: list[int], b: list[int], same: bool) -> None:
    assert same_timer(a, b) is same_timer(b, a) is same


def test_files_of_the_process() -> None:
    status = "Name:\tx\nUmask:\t0022\nUid:\t0\t0\t0\t0\nGroups:\t \nSigCgt:\t01\nVmRSS:\t4 kB\n"
    assert parse_status(status) == {
        "Umask": "0022", "Uid": "0 0 0 0", "Groups": "", "SigCgt": "01",
    }  # fmt: skip
    assert parse_io("rchar: 5\nwchar: 6\nsyscr: 1\n") == [5, 6]
    limits = "Limit   Soft Limit  Hard Limit  Units\nMax open files      1024      4096     files\n"
    assert parse_limits(limits + "Max nice priority    0         0        \n") == {
        "Max open files": "1024 4096", "Max nice priority": "0 0",
    }  # fmt: skip
    fields = ["R", *map(str, range(4, 53))]
    assert parse_stat(f"7 (a) b) {' '.join(fields)}") == ["a) b", 19, 40, 41, 31]
    timers = (
        "ID: 1\nsignal: 14/000001\nnotify: signal/pid.5\nClockID: 0\n"
        "ID: 0\nsignal: 0/0\nnotify: none/pid.5\nClockID: 1\n"
    )
    assert parse_timers(timers) == ["0 signal 0 clockid 1", "1 signal 14 clockid 0"]
    rows = (
        "key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime\n"
        "0 5 600 8 1 77 0 0 0 0 0 100 0 90\n"
        "0 6 600 8 1 78 0 0 0 0 0 100 0 90\n"
    )
    assert parse_queues(rows, 77) == {"5": "1 messages, sent 100, received 0"}


ENTRY = st.builds(
    Descriptor, st.just(0), st.sampled_from(["/a", "pipe:[1]", "socket:[2]"]), st.integers(-1, 2),
    st.just(2), st.dictionaries(st.just("kind"), st.sampled_from(["TCP", "fifo"])),
)  # fmt: skip
SNAPSHOT = st.builds(
    lambda entries, state: Snapshot({n: d._replace(number=n) for n, d in entries.items()}, state),
    st.dictionaries(st.integers(0, 6), ENTRY),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2)),
)


def read_back(facts: ObjectFacts) -> ObjectFacts:
    return ObjectFacts.of_json(json.loads(json.dumps(facts.to_json())))


@given(st.lists(SNAPSHOT, min_size=1, max_size=6), st.data())
def test_increments_give_each_epoch_back(snapshots: list[Snapshot], data: st.DataObject) -> None:
    """Also where an epoch becomes the base, with all of it."""
    pairs = zip([None, *snapshots], snapshots, strict=False)
    stored = [read_back(increment(before, now)) for before, now in pairs]
    for i, snapshot in enumerate(snapshots):
        assert resolve(stored[: i + 1]) == snapshot
    base = data.draw(st.integers(0, len(snapshots) - 1))
    stored[base] = read_back(increment(None, resolve(stored[: base + 1])))
    for i in range(base, len(snapshots)):
        assert resolve(stored[base : i + 1]) == snapshots[i]


def test_what_has_not_changed_is_not_stored() -> None:
    many = Snapshot({n: Descriptor(n, "/a", 0, 2) for n in range(1000)}, {"io": [1, 2]})
    other = Snapshot(dict(many.descriptors), {"io": [1, 3]})
    assert increment(many, many) == ObjectFacts([], [], {})
    assert increment(many, other) == ObjectFacts([], [], {"io": [1, 3]})


def test_epochs_of_older_images() -> None:
    """They have a whole list in each, without flags and facts."""
    then = resolve([ObjectFacts([[0, "/a", 5]]), ObjectFacts([[0, "/a", 7], [1, "pipe:[3]", -1]])])
    assert then == Snapshot({0: Descriptor(0, "/a", 7), 1: Descriptor(1, "pipe:[3]")}, {})
    now = Snapshot(
        {0: Descriptor(0, "/a", 7, 2, {"locks": ["x"]}), 1: Descriptor(1, "pipe:[3]", -1, 1)}, {"io": [1, 1]}
    )
    assert differences(then, now) == []


def test_long_lists_are_cut() -> None:
    assert listed("abc") == "a, b, c" and listed("abcde") == "a, b, c and 2 more"
    a = Snapshot({n: Descriptor(n, f"pipe:[{n}]", -1, 2) for n in range(50)})
    b = Snapshot({n: Descriptor(n, f"/x{n}", n, 2) for n in range(100)})
    words = differences(a, b)
    assert len(words) == 2 + SHOWN and all(len(w) < 200 for w in words)
    assert "and 47 more have been opened since" in words[0]


def test_a_reading_from_before_the_epoch_says_so() -> None:
    a, b = (Snapshot({}, {"time_ns": 10**9, "cwd": cwd}) for cwd in ("/a", "/b"))
    assert len(differences(a, b, 10**9)) == 1
    assert differences(a, b, 3 * 10**9)[1].startswith("what it had in the kernel was read 2.0 s before")
    assert differences(a, a, 3 * 10**9) == []


def test_signal_names() -> None:
    assert signal_names(1 << 9 | 1 << 40) == ["SIGUSR1", "signal 41"]


def test_reading_takes_a_bounded_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, read = [100.0], []

    def snapshot(_: int, mappings: list[Region], before: Snapshot | None) -> Snapshot:
        read.append(clock[0])
        clock[0] += cost
        return Snapshot({}, {"n": len(read)})

    monkeypatch.setattr(kernel_state, "snapshot", snapshot)
    monkeypatch.setattr(kernel_state.time, "monotonic", lambda: clock[0])
    for cost, readings in ((0.001, 150), (0.02, 75), (0.5, 4)):
        clock[0], read = 100.0, []
        reader = kernel_state.Reader(1, lambda: None)
        for _ in range(150):
            reader.read([])
            clock[0] += 0.1
        assert len(read) == readings, cost
