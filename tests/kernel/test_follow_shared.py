"""--follow-shared: what it takes, and when it gives shared memory up for good."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from checkpoint.session import Session
from tests.helpers import Spawn, session_of, wait_for
from tests.kernel.sole import SIZE, Sole
from uffdtrack import PAGE, Window
from uffdtrack.errors import UffdtrackError

ROOT = Path(__file__).parents[2]
GUARD_INSTALL = 102
HAS_RING = "anon_inode:[perf_event]"
THREADS = [
    "globals().update(queue=__import__('queue'))",
    "globals().update(loop=lambda q, r: [r.put(f()) for f in iter(q.get, None)])",
    "globals().update(start=lambda: [(q, r, t, t.start()) for q, r in [(queue.Queue(), queue.Queue())]"
    " for t in [threading.Thread(target=loop, args=(q, r))]][0])",
]
"""start() makes a thread that executes what it gets by a queue."""


@pytest.fixture
def sole(root: None, kernel: None, spawn: Spawn, tmp_path: Path) -> Sole:
    return Sole(spawn, tmp_path / "c", "anonymous")


def names(pid: int | str = "self") -> Counter[str]:
    """What the descriptors of a process are, without their numbers; of one that has ended, none."""
    found: Counter[str] = Counter()
    try:
        links = os.listdir(f"/proc/{pid}/fd")
    except (FileNotFoundError, ProcessLookupError):
        return found
    for link in links:
        try:
            name = os.readlink(f"/proc/{pid}/fd/{link}")
        except (FileNotFoundError, ProcessLookupError):
            continue  # the list's own
        found[name if name.startswith("anon") else name.split(":[")[0]] += 1
    return found


@contextmanager
def limit(descriptors: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def next_free() -> int:
    """The number that the next descriptor gets."""
    fd = os.dup(0)
    os.close(fd)
    return fd


def is_given_up(sole: Sole, session: Session) -> None:
    """It is compared, and no trap or ring is left of it."""
    for n in range(3):
        sole.write(n, f"given up {n}")
        assert sole.take(session) == 0
        sole.check()
    assert not names()[HAS_RING]
    assert not names()["anon_inode:inotify"]


@pytest.mark.parametrize("engine", ["scan", "ring"])
def test_without_the_option_it_is_compared(sole: Sole, engine: str) -> None:
    with sole.session(engine, follow_shared=False) as session:
        sole.take(session)
        before = names()
        for n in range(6):
            sole.write(n, "own")
            assert sole.take(session) == 0
            sole.check()
        assert names() == before
        assert not before["anon_inode:inotify"]


@pytest.mark.parametrize("tree", [[], ["--children"]])
def test_the_option(sole: Sole, spawn: Spawn, tmp_path: Path, tree: list[str]) -> None:
    for more in ([], ["--children"]):
        refused = session_of(
            spawn, sole.mapper.pid, tmp_path / "r", "--follow-shared", "--engine", "sync", *more
        )
        assert refused.wait() == 2
    us = session_of(spawn, sole.mapper.pid, tmp_path / "s", "--follow-shared", "--every", "20ms", *tree)
    children = Path(f"/proc/{us.pid}/task/{us.pid}/children")
    wait_for(
        lambda: any(names(child)["anon_inode:inotify"] for child in children.read_text().split()),
        "visits to its shared memory are watched",
    )
    us.send_signal(signal.SIGINT)
    assert us.wait() == 0


@pytest.mark.slow
def test_guard_pages(sole: Sole) -> None:
    """MADV_GUARD_INSTALL begins anew as long as there are markers of traps; a stop takes them."""
    if sole.mapper(f"libc.madvise({sole.at}, {PAGE}, {GUARD_INSTALL})") != "0":
        pytest.skip("this kernel has no guard pages in shared memory")
    sole.mapper(f"libc.madvise({sole.at}, {PAGE}, {GUARD_INSTALL + 1})")
    with sole.session("scan") as session:
        sole.follow(session)
        done = threading.Thread(
            target=sole.mapper, args=(f"libc.madvise({sole.at + 8 * PAGE}, {4 * PAGE}, {GUARD_INSTALL})",)
        )
        done.start()

        def returned() -> bool:
            sole.take(session)
            return not done.is_alive()

        wait_for(returned, "the call returns")
        assert sole.mapper(f"libc.madvise({sole.at + 8 * PAGE}, {4 * PAGE}, {GUARD_INSTALL + 1})") == "0"
        for n in range(3):
            sole.write(n + 20, "after")
            assert sole.take(session) == 0
            sole.check()


@pytest.mark.slow
def test_too_few_descriptors_for_rings(sole: Sole) -> None:
    """Nothing is tried again, and what all else needs is left."""
    with sole.session("scan") as session:
        sole.follow(session)
        for line in THREADS:
            sole.mapper(line)
        sole.mapper("globals().update(a=[start() for _ in range(4)])")
        with limit(next_free() + 40):
            sole.write(1, "few")
            assert sole.take(session) == 0
            sole.check()
        is_given_up(sole, session)
        sole.mapper("[(q.put(None), t.join()) for q, r, t, _ in a]")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["scan", "ring"])
def test_no_descriptor_for_the_object(sole: Sole, engine: str) -> None:
    """Pages that others have written and the process has not touched take one; else the epoch fails."""
    sole.at = sole.mapper.new(SIZE, 3, 0x21)
    room = taken = 0
    with sole.session(engine, follow_shared=False) as session:
        window = session.target.window

        def limited() -> Window:
            with limit(next_free() + room):
                return window()

        session.target.window = limited  # type: ignore[method-assign]
        for room in range(12):
            child = f"put({sole.at} + {room} * {PAGE}, b'child')"
            sole.mapper(f"os.waitpid(os.fork() or ({child}, os._exit(0)), 0)")
            try:
                sole.take(session)
            except (OSError, UffdtrackError):
                continue
            sole.check()
            taken += 1
    assert 0 < taken < 12


@pytest.mark.slow
def test_a_thread_with_the_number_of_another(sole: Sole) -> None:
    """The ring of a thread that has ended tells nothing of the one that has its number now."""
    m = sole.mapper
    for line in THREADS:
        m(line)
    m("globals().update(a=start())")
    tid = int(m("a[2].native_id"))
    with sole.session("scan") as session:
        sole.follow(session)
        m("(a[0].put(None), a[2].join())")
        for _ in range(50):
            m(
                "globals().update(b=(open('/proc/sys/kernel/ns_last_pid', 'w')"
                f".write('{tid - 1}'), start())[1])"
            )
            if int(m("b[2].native_id")) == tid:
                break
            m("(b[0].put(None), b[2].join())")
        else:
            pytest.skip("others have got that number each time")
        sole.take(session)
        sole.follow(session)
        child = f"os.waitpid(os.fork() or (put({sole.at} + 7 * {PAGE}, b'new'), os._exit(0)), 0)"
        m(f"(b[0].put(lambda: {child}), b[1].get())")
        assert sole.take(session) == 0
        sole.check()
        m("(b[0].put(None), b[2].join())")


@pytest.mark.slow
def test_what_pins_memory(sole: Sole) -> None:
    """Its writes pass no page table; it is given up for good."""
    with sole.session("scan") as session:
        sole.follow(session)
        sole.mapper("globals().update(u=libc.syscall(425, 8, ctypes.create_string_buffer(120)))")
        if int(sole.mapper("u")) < 0:
            pytest.skip("no io_uring")
        assert sole.take(session) == 0
        sole.mapper("os.close(u)")
        is_given_up(sole, session)
        with open(f"/proc/{sole.mapper.pid}/smaps") as smaps:
            part = smaps.read().split(f"{sole.at:x}-")[1].split("VmFlags")[1].splitlines()[0]
        assert "uw" not in part.split()


@pytest.mark.slow
def test_who_makes_a_userfaultfd_keeps_no_other(root: None, kernel: None, spawn: Spawn) -> None:
    """That process may outlive us: then a copy of a userfaultfd would keep the target waiting."""
    target = spawn(sys.executable, "-c", "import time; print('x', flush=True); time.sleep(100)")
    assert target.stdout and target.stdout.readline()
    us = spawn(
        sys.executable, "-c",
        "import os, sys; f = os.open('/dev/zero', 0); print('x', flush=True);"
        f"from uffdtrack import AddressSpace; AddressSpace.attach({target.pid})", f"attaches to {target.pid}",
        cwd=ROOT, env={**os.environ, "UFFDTRACK_SABOTAGE": "sleep:attach"},
    )  # fmt: skip
    assert us.stdout and us.stdout.readline()

    def children() -> list[int]:
        """By what they have in their command line: it may outlive us, and would keep the target for ever."""
        mark = b"attaches to %d\0" % target.pid
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if path.read_bytes().endswith(mark) and int(path.parent.name) != us.pid:
                    found.append(int(path.parent.name))
        return found

    def asleep() -> bool:
        own = {"socket", "anon_inode:[pidfd]", "pidfd"}
        return any(names(child) and set(names(child)) <= own for child in children())

    try:
        wait_for(asleep, "a child has a socket, and what it has opened")
        assert names(us.pid)["/dev/zero"]
    finally:
        for child in children():
            os.kill(child, signal.SIGKILL)
