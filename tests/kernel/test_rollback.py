"""Rollback is whole or not at all."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.chain import Chain, Lock, View
from tests.helpers import session_of, wait_for
from uffdtrack import PAGE, Region, parse_maps

Spawn = Callable[..., subprocess.Popen[bytes]]
Run = Callable[..., subprocess.CompletedProcess[str]]


class Rollee:
    """tests/programs/rollee.c, asked line by line."""

    def __init__(self, spawn: Spawn, build: Callable[[str], Path], **options: Any) -> None:
        self.process = spawn(build("rollee"), **options)
        self.pid = self.process.pid
        assert self.process.stdout and self.process.stdout.readline() == b"ready\n"

    def ask(self, line: str) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def maps(self) -> list[Region]:
        return parse_maps(Path(f"/proc/{self.pid}/maps").read_text())


def take(uffdtrack: Run, pid: int, directory: Path) -> None:
    """One chain of a single epoch."""
    uffdtrack("checkpoint", pid, "-o", directory, "--count", "1")


@pytest.fixture
def rollee(kernel: None, spawn: Spawn, build: Callable[[str], Path]) -> Rollee:
    return Rollee(spawn, build)


def test_back_to_each_epoch(rollee: Rollee, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    """Forth and back between epochs, in any order."""
    assert rollee.ask("s 1") == "1"
    # A pipe with room for a few rows, which are read one by one: the session is never far ahead of us.
    session = session_of(
        spawn, rollee.pid, tmp_path / "c", "--every", "1ms", "--count", "60", "--json", bufsize=0
    )
    assert session.stdout
    fcntl.fcntl(session.stdout, fcntl.F_SETPIPE_SZ, PAGE)
    session.stdout.readline()
    bound: dict[int, int] = {}
    n = 1
    for line in session.stdout:
        bound[json.loads(line)["epoch"]] = n + 1
        n += 1
        assert rollee.ask(f"s {n}") == str(n)
    assert session.wait() == 0
    found: dict[int, int] = {}
    for epoch in (40, 3, 59, 20, 40):
        uffdtrack("rollback", rollee.pid, f"{tmp_path}/c@{epoch}")
        # Back in the middle of setting or answering, it goes on with that: an answer may come first.
        answers = [rollee.ask("c"), rollee.ask("p")]
        while answers[-1] != "pong":
            answers.append(rollee.read())
        value = int(answers[-2])
        assert 1 <= value <= bound[epoch]
        assert found.setdefault(epoch, value) == value
    assert [found[e] for e in sorted(found)] == sorted(found.values())
    assert len(set(found.values())) > 2
    assert rollee.ask("s 77") == "77"


def test_mappings_threads_and_contents(rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    assert rollee.ask("s 42") == "42"
    threads, maps = rollee.threads(), rollee.maps()
    take(uffdtrack, rollee.pid, tmp_path / "c")
    assert rollee.ask("m") == "messed"
    assert rollee.threads() == threads + 1
    done = uffdtrack("rollback", rollee.pid, tmp_path / "c", "--json")
    outcome = json.loads(done.stdout)
    assert outcome["epoch"] == 0 and len(outcome["ended"]) == 1 and outcome["mappings"] > 5
    assert rollee.threads() == threads
    assert covers(rollee.maps()) == covers(maps)
    assert rollee.ask("c") == "42"
    assert rollee.ask("s 43") == "43"
    before = int(rollee.ask("b"))
    wait_for(lambda: int(rollee.ask("b")) > before, "the other threads go on")
    # And again, now that its mappings are partly ours.
    uffdtrack("rollback", rollee.pid, tmp_path / "c")
    assert rollee.ask("c") == "42"


def test_heap_that_was_larger_and_a_thread_born_since(rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    """The mappings are put back twice, the second time for good."""
    assert rollee.ask("g") == "1"
    threads, maps = rollee.threads(), rollee.maps()
    take(uffdtrack, rollee.pid, tmp_path / "c")
    assert rollee.ask("k") == "1" and covers(rollee.maps()) != covers(maps)
    assert rollee.threads() == threads + 1
    uffdtrack("rollback", rollee.pid, tmp_path / "c")
    assert rollee.ask("s 2") == "2"
    assert rollee.threads() == threads and covers(rollee.maps()) == covers(maps)
    end = next(r.end for r in rollee.maps() if r.name == "[heap]")
    with open(f"/proc/{rollee.pid}/mem", "rb") as memory:
        memory.seek(end - 5 * PAGE)
        assert memory.read(5 * PAGE) == bytes([3]) * 5 * PAGE


def covers(regions: list[Region]) -> list[tuple[int, int, str, str]]:
    """Mappings without the cuts between neighbours that are alike."""
    out: list[tuple[int, int, str, str]] = []
    for r in regions:
        name = "" if r.name == "[heap]" else r.name
        if out and out[-1][1:] == (r.start, r.permissions, name) and not name:
            out[-1] = (out[-1][0], r.end, r.permissions, name)
        else:
            out.append((r.start, r.end, r.permissions, name))
    return out


def test_memory_is_that_of_the_epoch_byte_by_byte(
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run
) -> None:
    # What the kernel writes to the area of rseq(2), the number of the processor, stays that of now.
    rollee = Rollee(spawn, build, env={**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"})
    take(uffdtrack, rollee.pid, tmp_path / "c")
    assert rollee.ask("m") == "messed"
    os.kill(rollee.pid, 19)  # SIGSTOP: it must not run on after the rollback
    wait_for(lambda: Path(f"/proc/{rollee.pid}/stat").read_text().split()[2] == "T", "stopped")
    uffdtrack("rollback", rollee.pid, tmp_path / "c")
    assert differing(rollee.pid, Chain(tmp_path / "c").view(0)) == []
    os.kill(rollee.pid, 18)
    assert rollee.ask("c") == "1"


def differing(pid: int, view: View) -> list[str]:
    """Pages of a stopped process that are not those of the view, by /proc/PID/mem alone."""
    wrong = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem, open(f"/proc/{pid}/pagemap", "rb") as pm:
        for region in parse_maps(Path(f"/proc/{pid}/maps").read_text()):
            if not region.stored or region.name == "[vdso]":
                continue
            lo, hi = view.of_region(region)
            stored = dict(zip(view.pages[lo:hi].tolist(), view.read(view.pages[lo:hi]), strict=True))
            own = region.file_backed
            pm.seek(region.start // PAGE * 8)
            entries = np.frombuffer(pm.read(region.size // PAGE * 8), np.uint64)
            # Present (63) or swapped (62), where reading tells; a present one with bit 61 is the file's.
            used = (entries >> np.uint64(62) != 0) & ~(own & (entries >> np.uint64(61) == 5))
            for page in set((np.flatnonzero(used) + region.start // PAGE).tolist()) | stored.keys():
                mem.seek(page * PAGE)
                expected = stored[page].tobytes() if page in stored else bytes(PAGE)
                if page not in stored and own:
                    wrong.append(f"{page * PAGE:#x} of {region.name} is not the file's")
                elif mem.read(PAGE) != expected:
                    wrong.append(f"{page * PAGE:#x} of {region}")
    return wrong


def test_thread_that_has_ended_is_refused(rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    assert rollee.ask("s 5") == "5"
    threads = rollee.threads()
    take(uffdtrack, rollee.pid, tmp_path / "c")
    assert rollee.ask("e") == "5"
    wait_for(lambda: rollee.threads() == threads - 1, "the thread has ended")
    assert rollee.ask("s 6") == "6"
    done = uffdtrack("rollback", rollee.pid, tmp_path / "c", code=5)
    assert "have ended since" in done.stderr
    assert rollee.ask("c") == "6"


def test_another_process_is_refused(
    rollee: Rollee, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run
) -> None:
    take(uffdtrack, rollee.pid, tmp_path / "c")
    other = Rollee(spawn, build)
    done = uffdtrack("rollback", other.pid, tmp_path / "c", code=5)
    assert "is not the one" in done.stderr
    assert other.ask("c") == "1"


@pytest.mark.parametrize("damage", ["byte", "cut", "missing", "swapped"])
def test_damaged_chain_is_refused_before_anything_is_touched(
    rollee: Rollee, tmp_path: Path, uffdtrack: Run, damage: str
) -> None:
    chain = tmp_path / "c"
    uffdtrack("checkpoint", rollee.pid, "-o", chain, "--count", "4", "--every", "1ms")
    bad = chain / "epoch-00000002.core"
    if damage == "byte":
        data = bytearray(bad.read_bytes())
        data[len(data) // 2] ^= 1
        bad.write_bytes(data)
    elif damage == "cut":
        bad.write_bytes(bad.read_bytes()[:-100])
    elif damage == "missing":
        bad.unlink()
    else:
        other = chain / "epoch-00000003.core"
        a, b = bad.read_bytes(), other.read_bytes()
        bad.write_bytes(b)
        other.write_bytes(a)
    assert rollee.ask("s 8") == "8"
    for argv in (
        ("rollback", rollee.pid, f"{chain}@3"),
        ("export", f"{chain}@3", "-o", tmp_path / "out.core"),
        ("verify", chain),
    ):
        done = uffdtrack(*argv, code=6)
        assert "epoch-0000000" in done.stderr
    assert not (tmp_path / "out.core").exists()
    assert rollee.ask("c") == "8"


def test_chain_is_locked_before_it_is_verified(rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    """Else what was verified might be another chain when it is read."""
    chain = tmp_path / "c"
    uffdtrack("checkpoint", rollee.pid, "-o", chain, "--count", "2", "--every", "1ms")
    (chain / "epoch-00000000.core").write_bytes(b"")
    with Lock(chain):
        assert "in use" in uffdtrack("rollback", rollee.pid, chain, code=2).stderr
    assert "is damaged" in uffdtrack("rollback", rollee.pid, chain, code=6).stderr
    uffdtrack("rollback", rollee.pid, tmp_path / "nowhere", code=2)
    (tmp_path / "d").mkdir()
    uffdtrack("rollback", rollee.pid, tmp_path / "d", code=2)
    assert not list((tmp_path / "d").iterdir())


def test_differences_outside_memory_are_named(
    kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run
) -> None:
    script = (
        "import sys\n"
        "f = open(sys.argv[1], 'w+')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline(); f.write('x' * 100); f.flush(); g = open('/dev/null')\n"
        "print('done', flush=True); sys.stdin.readline()\n"
    )
    process = spawn(sys.executable, "-c", script, tmp_path / "file")
    assert process.stdin and process.stdout and process.stdout.readline()
    take(uffdtrack, process.pid, tmp_path / "c")
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"done\n"
    done = uffdtrack("rollback", process.pid, tmp_path / "c")
    assert "was 0 and is 100" in done.stderr
    assert "(/dev/null) has been opened since" in done.stderr


def test_python_with_threads(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    script = (
        "import sys, threading, time\n"
        "state = {}\n"
        "def work(k):\n"
        "    while True:\n"
        "        state[k] = state.get(k, 0) + 1\n"
        "        time.sleep(0.0001)\n"
        "for k in range(3):\n"
        "    threading.Thread(target=work, args=(k,), daemon=True).start()\n"
        "marker = 'old'\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    line = sys.stdin.readline().strip()\n"
        "    if line: marker = line\n"
        "    print(marker, sum(state.values()), flush=True)\n"
    )
    process = spawn(sys.executable, "-c", script)
    assert process.stdin and process.stdout and process.stdout.readline()

    def ask(line: str) -> tuple[str, int]:
        assert process.stdin and process.stdout
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
        word, n = process.stdout.readline().split()
        return word.decode(), int(n)

    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--count", "20", "--every", "5ms")
    assert ask("new")[0] == "new"
    late = ask("")[1]
    wait_for(lambda: ask("")[1] > late + 1000, "much has happened")
    uffdtrack("rollback", process.pid, f"{tmp_path}/c@10")
    marker, n = ask("")
    assert marker == "old"
    wait_for(lambda: ask("")[1] > n + 100, "its threads go on")


LEADERLESS = """
import ctypes, threading, time, sys
n = 0
def work():
    global n
    while True:
        n += 1
        if n % 1000 == 0: print(n, time.monotonic(), flush=True)
        time.sleep(0.0001)
threading.Thread(target=work).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_first_thread_has_ended(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    """Without its first thread /proc/PID has no memory and no files; the process lives all the same."""
    process = spawn(sys.executable, "-c", LEADERLESS)
    assert process.stdout and process.stdout.readline()
    wait_for(lambda: "Z" in Path(f"/proc/{process.pid}/status").read_text().split("State:")[1][:5], "zombie")
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--count", "10", "--every", "5ms")
    now = time.monotonic()
    lines = ((int(n), float(when)) for n, when in map(bytes.split, process.stdout))
    # More than one line was written since the epochs.
    late = [next(n for n, when in lines if when > now) for _ in range(2)][-1]
    uffdtrack("rollback", process.pid, f"{tmp_path}/c@4")
    # What it wrote before that may still be in the pipe.
    counts = (n for n, _ in lines)
    back = next(b for a, b in itertools.pairwise(itertools.chain([late], counts)) if b < a)
    assert next(counts) > back
