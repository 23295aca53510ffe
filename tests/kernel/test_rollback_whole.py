"""A rollback that cannot be done leaves every byte, mapping and register as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import checkpoint.rollback.order
from checkpoint.chain import Chain
from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.contents import Memory
from checkpoint.rollback.layout import Change
from checkpoint.rollback.making import Maker
from tests.conftest import missing
from tests.helpers import Build, Run, Spawn, wait_for
from tests.kernel.rollee import Rollee, covers, differing, take
from uffdtrack import Region, Tracee, parse_maps
from uffdtrack.errors import TargetError


class Changes(Rollee):
    """tests/programs/changes.c, with a base of when it said ready."""

    def __init__(self, spawn: Spawn, build: Build, uffdtrack: Run, directory: Path, what: str) -> None:
        # The kernel writes the number of the processor to the area of rseq(2), whenever it likes.
        env = {**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
        self.process = spawn(build("changes"), directory / "file", what, env=env)
        self.pid = self.process.pid
        self.chain = directory / "c"
        assert self.read() == "ready"
        take(uffdtrack, self.pid, self.chain)
        assert self.ask("c") == "1"
        if self.ask(what) != "done":
            missing(f"what {what!r} of changes.c does")

    def state(self) -> dict[Region, bytes]:
        """All mappings and what they hold, by /proc/PID/mem, once it waits for the next line."""
        call = Path(f"/proc/{self.pid}/syscall")
        wait_for(lambda: call.read_text().startswith("0 "), "it is in read(2)")
        held = {}
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            for region in parse_maps(Path(f"/proc/{self.pid}/maps").read_text()):
                if region.special or region.name == "[vdso]":
                    continue
                parts = []
                for address in range(region.start, region.end, 4096):
                    try:
                        memory.seek(address)
                        parts.append(memory.read(4096))
                    except OSError:
                        parts.append(b"-")
                held[region] = b"".join(parts)
        return held


@pytest.fixture
def changes(
    kernel: None, spawn: Spawn, build: Build, uffdtrack: Run, tmp_path: Path
) -> Callable[[str], Changes]:
    return lambda what: Changes(spawn, build, uffdtrack, tmp_path, what)


@pytest.mark.parametrize(
    ("what", "why"),
    [("f", "behind the end of its file"), ("g", "guard page"), ("s", "EPERM"), ("m", "EPERM")],
)
def test_what_cannot_be_done_is_refused_whole(
    changes: Callable[[str], Changes], uffdtrack: Run, what: str, why: str
) -> None:
    """A file cut short, a guard page, sealed memory that would have to go or to change."""
    target = changes(what)
    before = target.state()
    done = uffdtrack("rollback", target.pid, target.chain, code=5)
    assert why in done.stderr and "; the process is as it was\n" in done.stderr, done.stderr
    assert target.state() == before
    assert target.ask("p") == "cannot", "it runs on"


def test_file_of_which_a_descriptor_for_reading_is_left(
    changes: Callable[[str], Changes], uffdtrack: Run
) -> None:
    """The descriptor is of no use for a mapping that is written; the file is opened by its name."""
    target = changes("r")
    uffdtrack("rollback", target.pid, target.chain)
    assert target.ask("c") == "1"
    mapped = [r for r in target.maps() if r.name.endswith("/file")]
    assert [r.permissions for r in mapped] == ["rw-s"]


IN_A_MOUNT = 'mount -t tmpfs none "$2" && exec "$0" "$1" "$3"'


@pytest.mark.parametrize("where", ["mount", "chroot"])
def test_file_that_is_there_for_the_target_alone(
    root: None,
    spawn: Spawn,
    build: Build,
    tool: Callable[[str], str],
    tmp_path: Path,
    uffdtrack: Run,
    where: str,
) -> None:
    """In a container, names are other files, or none, for us."""
    root_directory = tmp_path / "root"
    root_directory.mkdir()

    def start(program: Path, file: Path, what: str, **options: object) -> subprocess.Popen[bytes]:
        if where == "mount":
            argv = (tool("unshare"), "-m", "sh", "-c", IN_A_MOUNT, program, file, file.parent, what)
            return spawn(*argv, **options)
        shutil.copy(build("changes", "-static"), root_directory / "changes")
        return spawn(tool("chroot"), root_directory, "/changes", "/file", what, **options)

    target = Changes(start, build, uffdtrack, tmp_path, "r")
    uffdtrack("rollback", target.pid, target.chain)
    assert target.ask("c") == "1"
    assert [r.permissions for r in target.maps() if r.name.endswith("/file")] == ["rw-s"]


def test_what_can_be_done_is_done_to_the_byte(changes: Callable[[str], Changes], uffdtrack: Run) -> None:
    """Pages that were touched since are gone, not zeros; the mappings are those of the epoch."""
    target = changes("v")
    view = Chain(target.chain).view(0)
    uffdtrack("rollback", target.pid, target.chain)
    assert target.ask("c") == "1"
    target.state()
    wrong = differing(target.pid, view)
    assert all("[stack]" in text for text in wrong), "its stack alone has lived on"
    assert covers(target.maps()) == covers(view.epoch.regions)


def test_heap_that_was_not_there(changes: Callable[[str], Changes], uffdtrack: Run) -> None:
    """The break goes back with the heap: the next sbrk(3) gives memory, again and again."""
    target = changes("h")
    assert any(r.name == "[heap]" for r in target.maps())
    for _ in range(3):
        uffdtrack("rollback", target.pid, target.chain)
        assert not any(r.name == "[heap]" for r in target.maps())
        assert target.ask("h") == "done" and target.ask("h") == "done"
        assert target.ask("c") == "1"


def fail_in(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Make a rollback of this process fail at some step, or in the middle of it."""
    error = TargetError("made to fail")

    def fail(*_: object) -> None:
        raise error

    if place == "map":
        map_one = Maker.map

        def second_map(self: Maker, change: Change) -> None:
            map_one(self, change)
            if self.changed > 1:
                fail()

        monkeypatch.setattr(Maker, "map", second_map)
    elif place == "write":
        write = Memory._write
        count = iter(range(1000))

        def half(self: Memory, pages: object, contents: object) -> None:
            n = next(count)
            write(self, pages[: -(n == 0) or None], contents)  # type: ignore[arg-type, index]
            if n == 0:
                fail()

        monkeypatch.setattr(Memory, "_write", half)
    elif place == "drop":
        drop = Memory.drop
        monkeypatch.setattr(Memory, "drop", lambda *a: (drop(*a), fail()))
    else:
        set_state = Tracee.set_state
        done: list[int] = []

        def fail_once(self: Tracee, state: object) -> None:
            set_state(self, state)  # type: ignore[arg-type]
            done.append(1)
            if len(done) == 1:
                fail()

        monkeypatch.setattr(Tracee, "set_state", fail_once)


@pytest.mark.parametrize("place", ["map", "write", "drop", "registers"])
def test_failure_in_the_middle_is_taken_back(
    changes: Callable[[str], Changes], monkeypatch: pytest.MonkeyPatch, uffdtrack: Run, place: str
) -> None:
    target = changes("v")
    before = target.state()
    with monkeypatch.context() as patch:
        fail_in(patch, place)
        with pytest.raises(RollbackRefusedError, match="made to fail; the process is as it was"):
            checkpoint.rollback.order.rollback(target.pid, Chain(target.chain).view(0))
    assert target.state() == before
    assert target.ask("p") == "cannot", "it runs on"
    uffdtrack("rollback", target.pid, target.chain)
    assert target.ask("c") == "1"
    assert not any(r.name == "[heap]" for r in target.maps())


def test_failure_that_cannot_be_taken_back_says_so(
    changes: Callable[[str], Changes], monkeypatch: pytest.MonkeyPatch, uffdtrack: Run
) -> None:
    target = changes("v")
    with monkeypatch.context() as patch:
        fail_in(patch, "write")
        patch.setattr(Memory, "restore", lambda *_: False)
        with pytest.raises(TargetError, match="partly that of the epoch"):
            checkpoint.rollback.order.rollback(target.pid, Chain(target.chain).view(0))
    uffdtrack("rollback", target.pid, target.chain)
    assert target.ask("c") == "1"


def test_failure_after_threads_were_ended(
    kernel: None,
    spawn: Spawn,
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    uffdtrack: Run,
) -> None:
    """What threads have ended is named; memory is as it was."""
    rollee = Rollee(spawn, build)
    take(uffdtrack, rollee.pid, tmp_path / "c")
    assert rollee.ask("s 7") == "7"
    threads = rollee.threads()
    assert rollee.ask("t") == "7" and rollee.threads() == threads + 1
    with monkeypatch.context() as patch:
        fail_in(patch, "registers")
        with pytest.raises(TargetError, match="as they were, but threads born since") as caught:
            checkpoint.rollback.order.rollback(rollee.pid, Chain(tmp_path / "c").view(0))
    assert not isinstance(caught.value, RollbackRefusedError)
    assert rollee.threads() == threads
    assert rollee.ask("c") == "7"
    uffdtrack("rollback", rollee.pid, tmp_path / "c")
    assert rollee.ask("c") == "1"
