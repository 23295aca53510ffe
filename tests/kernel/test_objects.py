"""What a process has in the kernel is not rolled back: what that tears is refused, what differs is named.

The objects are made by tests/programs/objects.c.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.errors import RollbackRefusedError
from checkpoint.export import compact
from checkpoint.objects import Snapshot, resolve
from checkpoint.rollback.order import rollback
from checkpoint.rollback.outcome import Outcome
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.conftest import missing
from tests.helpers import Build, Run, Spawn

TORN = {
    "io_uring": r"an io_uring, file descriptor \d+ \(anon_inode:\[io_uring\]\), mapping",
    "aio": r"an aio context, mapping 0x[0-9a-f]+ \(/\[aio\]",
    "perf": r"a perf ring, mapping",
    "packet": r"a ring of a socket \(AF_PACKET, AF_XDP\), mapping",
    "bpf": r"memory that it shares with a BPF program, mapping",
    "kvm": r"a virtual machine, file descriptor \d+ \(anon_inode:kvm-vm\)",
    "secret": r"memory that nobody else can read \(memfd_secret\), mapping",
    "uring_gone": r"an io_uring, file descriptor",
}
"""Kind, and how the refusal names it. The last one is closed when the rollback comes."""

NAMED = {
    "silent_pipe": r"\d+ bytes have been read and \d+ written since; what .*pipe:\[",
    "fifo": r"what of them .*",
    "event": r"the counter of file descriptor \d+ \(anon_inode:\[eventfd\]\) was 0 and is 17",
    "timer_descriptor": r"timers have been set or have fired since: .*\[timerfd\]",
    "periodic": r"timers have been set or have fired since: .*\d+ \(\S+\), \d+ ",
    "signal_descriptor": r"the set of signals of file descriptor \d+ .* was 0*8000000 and is 0*400000",
    "epoll": r"set of watches .*\[eventpoll\]\) was of 0 and is of 1",
    "inotify": r"set of watches .*:inotify\) was of 0 and is of 1",
    "fanotify": r"set of watches .*\[fanotify\]\) was of 0 and is of 1",
    "offset": r"the offset of file descriptor \d+ \(.*objects\) was 0 and is 7",
    "flags": r"the open mode of file descriptor \d+ \(/\) was \S+ and is \S+",
    "whole_lock": r"the locks on files are not what they were: .*/lock\)",
    "range_lock": r"the locks on files are not what they were: .*/range\)",
    "pid_descriptor": r"the process of file descriptor \d+ \(.*pidfd.*\) was \d+ and is -1",
    "queue": r"the number of bytes in the queue of file descriptor \d+ \(/objects-\d+ .*\) was 0 and is 7",
    "message": r"System V message queues are not what they were: \d+ was 1 messages, .* is 2 messages",
    "opened": r"\(/dev/full\) has been opened since",
    "closed": r"\(/dev/random\) has been closed since",
    "replaced": r"file descriptor \d+ was /dev/null and is pipe:",
    "posix_timer": r"POSIX timers have been made or deleted since: 0 then, 1 now",
    "action": r"the actions for signals are not what they were: SIGUSR1, SIGWINCH",
    "pending": r"signals pending then or now, not both: SIGUSR2",
    "mask": r"umask was 0022 and is 0077",
    "directory": r"the working directory was .* and is /usr",
    "root": r"the root directory was / and is /usr",
    "limit": r"resource limits are not what they were: Max core file size was \S+ \S+ and is 4096 ",
    "priority": r"the nice value of threads is not what it was: \d+ \(0 then, 3 now\)",
    "policy": r"the scheduling policy of threads is not what it was: \d+ \(0 then, 3 now\)",
    "processors": r"the processors of threads is not what it was: ",
    "name": r"the name of threads is not what it was: \d+ \(objects then, another now\)",
    "killed_first": r"oom_score_adj was 0 and is 500",
    "persona": r"the personality was 0+ and is 0*40000",
    "child": r"child processes born since: \d+$",
    "capability": r"CapBnd was \w+ and is \w+",
    "groups": r"Groups was .* and is 12345",
    "privileges": r"NoNewPrivs was 0 and is 1",
    "space": r"namespaces are not what they were: uts was uts:\S+ and is uts:",
}
"""Kind, and the warning after it was changed."""


class Objects:
    """tests/programs/objects.c, with some kinds of objects."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self.without = self._until("ready")

    def _until(self, word: str) -> list[str]:
        assert self.process.stdout
        lines = []
        while (line := self.process.stdout.readline().decode().strip()) != word:
            assert line, "it has ended"
            lines.append(line)
        return lines

    def ask(self, what: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{what}\n".encode())
        self.process.stdin.flush()

    def change(self) -> None:
        self.ask("change")
        self.without += self._until("done")

    def wait(self) -> None:
        self.ask("wait")
        self._until("done")

    def end(self) -> None:
        """It removes what would outlive it."""
        if self.process.poll() is None:
            self.ask("end")
            assert self.process.wait(10) == 0


@pytest.fixture
def start(kernel: None, spawn: Spawn, build: Build, tmp_path: Path) -> Iterator[Callable[..., Objects]]:
    started: list[Objects] = []

    def objects(*kinds: str) -> Objects:
        started.append(Objects(spawn(build("objects"), *kinds, cwd=tmp_path)))
        return started[-1]

    yield objects
    for one in started:
        one.end()


def take(pid: int, directory: Path, count: int = 1) -> Chain:
    """A chain of some epochs."""
    with ProcessTarget(pid) as target, ChainWriter(directory, b"", False) as chain:
        session = Session(target, chain)
        for _ in range(count):
            target._objects.budget._rest = 0.0  # on a slow machine, too
            session.take()
    return Chain(directory)


@pytest.mark.parametrize("kind", TORN)
def test_what_would_be_torn_is_refused(start: Callable[..., Objects], tmp_path: Path, kind: str) -> None:
    target = start(kind)
    if target.without:
        missing(target.without[0])
    chain = take(target.pid, tmp_path / "c")
    target.change()
    maps = Path(f"/proc/{target.pid}/maps").read_text()
    with pytest.raises(RollbackRefusedError) as refused:
        rollback(target.pid, chain.view(0))
    assert re.search(TORN[kind], str(refused.value))
    assert "--anyway" in str(refused.value)
    assert Path(f"/proc/{target.pid}/maps").read_text() == maps
    outcome = rollback(target.pid, chain.view(0), anyway=True)
    assert any(re.search(TORN[kind], text) for text in outcome.warnings)
    target.change()


def test_anyway_of_the_command_line(start: Callable[..., Objects], tmp_path: Path, uffdtrack: Run) -> None:
    target = start("aio")
    if target.without:
        missing(target.without[0])
    uffdtrack("checkpoint", target.pid, "-o", tmp_path / "c", "--count", "1")
    target.change()
    refused = uffdtrack("rollback", target.pid, tmp_path / "c", code=5)
    assert "Nothing was touched" in refused.stderr
    done = uffdtrack("rollback", target.pid, tmp_path / "c", "--anyway", "--json")
    assert json.loads(done.stdout)["warnings"][0].startswith("not rolled back: an aio context")


def test_unchanged_objects_give_no_warning(start: Callable[..., Objects], tmp_path: Path) -> None:
    """Rings that are not used are not torn either. A second epoch has nothing new of all these."""
    target = start(*NAMED, "io_uring", "aio")
    chain = take(target.pid, tmp_path / "c", 2)
    assert rollback(target.pid, chain.view(0)).warnings == []
    assert rollback(target.pid, chain.view(1)).warnings == []
    objects = chain.open(1).facts.objects
    assert (objects.descriptors, objects.closed) == ([], [])
    assert objects.state is not None and objects.state.keys() <= {"time_ns"}


Changed = tuple[Objects, Outcome]


@pytest.fixture(scope="module")
def changed(kernel: None, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changed]:
    """One process that has all of `NAMED`, changed since the epoch to which it was rolled back."""
    directory = tmp_path_factory.mktemp("objects")
    process = subprocess.Popen(
        [build("objects"), *NAMED], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        try:
            target = Objects(process)
            chain = take(target.pid, directory / "c")
            target.change()
            yield target, rollback(target.pid, chain.view(0))
            target.end()
        finally:
            process.kill()


@pytest.mark.parametrize("kind", NAMED)
def test_what_differs_is_named(changed: Changed, kind: str) -> None:
    target, outcome = changed
    for line in target.without:
        if line.startswith(f"no {kind}:"):
            missing(line)
    assert [text for text in outcome.warnings if re.search(NAMED[kind], text)], outcome.warnings
    assert len(outcome.warnings) < 40, "one line for each kind"


def test_sockets_are_named(start: Callable[..., Objects], tmp_path: Path) -> None:
    """The kernel counts nothing that goes through one by send(2) and recv(2)."""
    target = start("unix_socket")
    chain = take(target.pid, tmp_path / "c")
    target.change()
    assert any(
        re.search(r"sent and received .*UNIX-STREAM socket:", w)
        for w in rollback(target.pid, chain.view(0)).warnings
    )


def test_a_target_that_ends_after_the_rollback(start: Callable[..., Objects], tmp_path: Path) -> None:
    """What it closes at its end is no difference: it is compared while it stands."""
    target = start("offset")
    chain = take(target.pid, tmp_path / "c")
    target.wait()
    target.ask("end")  # which it reads when it is back in its read(2)
    warnings = rollback(target.pid, chain.view(0)).warnings
    assert target.process.wait(10) == 0
    assert len(warnings) == 1 and "bytes have been read" in warnings[0]


def test_increments_and_compaction(start: Callable[..., Objects], tmp_path: Path) -> None:
    target = start("opened", "closed", "event", "mask")
    seen: list[Snapshot] = []
    with ProcessTarget(target.pid) as process, ChainWriter(tmp_path / "c", b"", False) as chain:
        session = Session(process, chain)
        for _ in range(3):
            session.take()
            seen.append(session.stream.sink.tip.objects or Snapshot())
            target.change() if len(seen) < 2 else None
            process._objects.budget._rest = 0.0
        session.take()
        seen.append(session.stream.sink.tip.objects or Snapshot())

    def stored(number: int) -> Snapshot:
        return resolve(file.facts.objects for file in Chain(tmp_path / "c").view(number).sources)

    for number, snapshot in enumerate(seen):
        assert stored(number) == snapshot
    assert seen[0].descriptors != seen[1].descriptors
    compact(Chain(tmp_path / "c"), 2, b"")
    for number in (2, 3):
        assert stored(number) == seen[number]
    assert len(Chain(tmp_path / "c").open(3).facts.objects.descriptors) == 0


MANY = """
import os, sys
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(900)]
print("ready", flush=True)
sys.stdin.readline()
"""


def test_many_descriptors_are_stored_once(kernel: None, spawn: Spawn, tmp_path: Path) -> None:
    target = spawn(sys.executable, "-c", MANY)
    assert target.stdout and target.stdout.readline()
    chain = take(target.pid, tmp_path / "c", 3)
    assert len(chain.open(0).facts.objects.descriptors) > 900
    for number in (1, 2):
        assert len(chain.open(number).facts.objects.descriptors) == 0
        assert len(resolve(file.facts.objects for file in chain.view(number).sources).descriptors) > 900
    assert rollback(target.pid, chain.view(2)).warnings == []
