"""Rollback is whole or not at all."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import sys
import time
from pathlib import Path

from checkpoint.chain import Chain
from tests.helpers import Build, Run, Spawn, session_of, wait_for
from tests.kernel.rollee import Rollee, covers, differing, take
from uffdtrack import PAGE


def test_back_to_each_epoch(rollee: Rollee, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    """Forth and back between epochs, in any order."""
    assert rollee.ask("s 1") == "1"
    # Rows are read one by one, and the interval leaves time for that: the session is not far ahead of us.
    session = session_of(
        spawn, rollee.pid, tmp_path / "c", "--every", "10ms", "--count", "60", "--json", bufsize=0
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


def test_memory_is_that_of_the_epoch_byte_by_byte(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
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
