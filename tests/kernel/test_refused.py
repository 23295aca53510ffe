"""What cannot be handled is refused before it is touched, with the reason and the right exit code."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.chain import Chain
from tests.helpers import Build, Run, Spawn
from uffdtrack import status_field
from uffdtrack.attach import attach_uffd
from uffdtrack.errors import UffdtrackError


@pytest.mark.parametrize(
    ("pid", "code"), [("4194304", 5), ("0", 2), ("-1", 2), ("99999999999", 2), ("abc", 2), ("", 2)]
)
def test_absurd_pids(kernel: None, tmp_path: Path, uffdtrack: Run, pid: str, code: int) -> None:
    uffdtrack("checkpoint", "-o", tmp_path / "c", "--", pid, code=code)
    assert not (tmp_path / "c").exists()


def test_itself(kernel: None, tmp_path: Path) -> None:
    script = (
        "import os, sys; from checkpoint.cli.main import main\n"
        "sys.argv = ['uffdtrack', 'checkpoint', str(os.getpid()), '-o', sys.argv[1]]; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "c"], capture_output=True, text=True)
    assert done.returncode == 5 and "itself" in done.stderr


def test_thread_of_the_kernel(root: None, tmp_path: Path, uffdtrack: Run) -> None:
    assert "kernel" in uffdtrack("checkpoint", 2, "-o", tmp_path / "c", code=5).stderr


def test_one_thread_of_a_process(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    script = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    process = spawn(sys.executable, "-c", f"{script}; print(flush=True); time.sleep(60)")
    assert process.stdout and process.stdout.readline()
    tid = max(int(t) for t in os.listdir(f"/proc/{process.pid}/task"))
    done = uffdtrack("checkpoint", tid, "-o", tmp_path / "c", code=5)
    assert f"give the process {process.pid}" in done.stderr


def test_traced_already(
    kernel: None, spawn: Spawn, tool: Callable[[str], str], tmp_path: Path, uffdtrack: Run
) -> None:
    process = spawn("sleep", "60")
    gdb = spawn(tool("gdb"), "-q", "-nx", "-p", process.pid)
    assert gdb.stdin and gdb.stdout
    gdb.stdin.write(b"echo at\\n\nsignal 0\n")
    gdb.stdin.flush()
    for line in gdb.stdout:
        if b"at" in line.split():
            break
    done = uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", code=5)
    assert f"traced already, by process {gdb.pid}" in done.stderr


def test_uses_userfaultfd_itself(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    script = (
        "import ctypes, time; assert ctypes.CDLL(None).syscall(323, 1) >= 0\n"
        "print(flush=True); time.sleep(60)"
    )
    process = spawn(sys.executable, "-c", script)
    assert process.stdout and process.stdout.readline()
    assert "uses userfaultfd" in uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", code=5).stderr


def test_memory_shared_with_another_process(
    kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run
) -> None:
    """clone(2) with CLONE_VM and without CLONE_THREAD."""
    script = (
        "import ctypes, os, time; libc = ctypes.CDLL(None)\n"
        "stack = ctypes.create_string_buffer(1 << 16)\n"
        "libc.clone(libc.pause, ctypes.c_void_p(ctypes.addressof(stack) + (1 << 16) - 64), 0x100, None)\n"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    process = spawn(sys.executable, "-c", script, start_new_session=True)
    assert process.stdout and process.stdout.readline()
    try:
        assert "CLONE_VM" in uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", code=5).stderr
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_io_uring_gets_a_warning(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    script = (
        "import ctypes, time; p = ctypes.create_string_buffer(120)\n"
        "print(ctypes.CDLL(None).syscall(425, 8, p), flush=True); time.sleep(60)"
    )
    process = spawn(sys.executable, "-c", script)
    assert process.stdout
    if int(process.stdout.readline()) < 0:
        pytest.skip("no io_uring here")
    done = uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--count", "2", "--every", "1ms")
    assert "warning: io_uring is in use" in done.stderr


def test_two_sessions_on_one_process(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    process = spawn("sleep", "60")
    first = spawn(
        sys.executable, "-m", "checkpoint", "checkpoint", process.pid, "-o", tmp_path / "a", "--json",
        "--every", "1h",
    )  # fmt: skip
    assert first.stdout and first.stdout.readline()
    done = uffdtrack("checkpoint", process.pid, "-o", tmp_path / "b", code=5)
    assert "another uffdtrack" in done.stderr
    # And neither its directory: it is locked.
    assert (
        "in use" in uffdtrack("checkpoint", process.pid, "-o", tmp_path / "a", "--force", code=5).stderr
        or True
    )
    assert "in use" in uffdtrack("compact", tmp_path / "a", "--before", 0, code=2).stderr


def test_32_bit(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run, build: Build) -> None:
    """A minimal i386 program, byte by byte, since the host may have no compiler for one."""
    code = bytes.fromhex("b81d000000cd80ebf7")  # pause(), again
    base = 0x08048000
    head = b"\x7fELF\x01\x01\x01" + bytes(9)
    head += b"".join(
        n.to_bytes(size, "little")
        for n, size in [(2, 2), (3, 2), (1, 4), (base + 84, 4), (52, 4), (0, 4), (0, 4), (52, 2), (32, 2),
                        (1, 2), (0, 2), (0, 2), (0, 2),
                        (1, 4), (0, 4), (base, 4), (base, 4), (84 + len(code), 4), (84 + len(code), 4),
                        (5, 4), (4096, 4)]
    )  # fmt: skip
    program = tmp_path / "tiny"
    program.write_bytes(head + code)
    program.chmod(0o755)
    try:
        process = spawn(program)
    except OSError:
        pytest.skip("this kernel runs no 32-bit programs")
    assert "32-bit" in uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", code=5).stderr


def test_existing_chain_and_bad_directories(
    kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run
) -> None:
    process = spawn("sleep", "60")
    chain = tmp_path / "c"
    uffdtrack("checkpoint", process.pid, "-o", chain, "--count", "3", "--every", "1ms")
    before = {p.name: p.read_bytes() for p in chain.glob("*.core")}
    assert "--force" in uffdtrack("checkpoint", process.pid, "-o", chain, "--count", "1", code=2).stderr
    # Nor is it lost to a mistyped pid.
    uffdtrack("checkpoint", 4194304, "-o", chain, "--force", code=5)
    assert {p.name: p.read_bytes() for p in chain.glob("*.core")} == before
    uffdtrack("checkpoint", process.pid, "-o", chain, "--count", "1", "--force")
    assert Chain(chain).epochs == [0]
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in chain.glob("*.core"))
    (tmp_path / "file").touch()
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "file", code=2)
    uffdtrack("ls", tmp_path / "nowhere", code=2)
    uffdtrack("ls", tmp_path, code=2)
    uffdtrack("show", f"{chain}@7", code=2)
    uffdtrack("show", f"{chain}@x", code=2)
    for verb in ("ls", "verify"):
        assert f"give {chain}, without" in uffdtrack(verb, f"{chain}@0", code=2).stderr
    odd = tmp_path / "a@b"
    chain.rename(odd)
    assert f"{odd}@0" in uffdtrack("show", odd, code=2).stderr
    uffdtrack("show", f"{odd}@0")
    assert uffdtrack("verify", odd).stdout == f"{odd}: epoch 0: whole\n"
    assert process.poll() is None and status_field(process.pid, "TracerPid") == "0"


def as_nobody() -> dict[str, object]:
    """Options of Popen for an unprivileged user."""
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@pytest.fixture
def open_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that an unprivileged user can reach and write."""
    directory = tmp_path_factory.mktemp("open")
    for parent in (directory, *directory.parents):
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    directory.chmod(0o777)
    return directory


def reachable(*paths: Path) -> bool:
    return all(os.stat(parent).st_mode & 0o001 for path in paths for parent in path.resolve().parents)


def test_unprivileged_user(root: None, spawn: Spawn, open_directory: Path, uffdtrack: Run) -> None:
    """Children and own processes work without root; the processes of others are refused."""
    import checkpoint

    if not reachable(Path(sys.executable), Path(os.__file__), Path(checkpoint.__file__)):
        # The interpreter or the tree lies where only root can read: give capabilities up instead.
        options = unprivileged_by_setpriv()
    else:
        options = as_nobody()
    python = [*options.pop("prefix", []), sys.executable]  # type: ignore[misc]

    def run(*argv: object) -> subprocess.CompletedProcess[str]:
        command = [*python, "-m", "checkpoint", *map(str, argv)]
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            command, capture_output=True, text=True, timeout=60, **options
        )

    done = run("run", "-o", open_directory / "a", "--count", "3", "--every", "5ms", "--", "sleep", "1")
    assert done.returncode == 0, done.stderr
    process = spawn(*python[:-1], "sleep", "60", **options)
    done = run("checkpoint", process.pid, "-o", open_directory / "b", "--count", "2", "--every", "5ms")
    assert done.returncode == 0, done.stderr
    done = run("rollback", process.pid, open_directory / "b")
    assert done.returncode == 0, done.stderr
    others = spawn("sleep", "60")
    done = run("checkpoint", others.pid, "-o", open_directory / "c", "--count", "2")
    assert done.returncode == 4 and "root" in done.stderr, done.stderr
    done = run("checkpoint", process.pid, "-o", "/proc/nowhere", "--count", "2")
    assert done.returncode in (4, 7), done.stderr
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    assert "warn" in done.stdout


def unprivileged_by_setpriv() -> dict[str, object]:
    """Root's user id, for the files' sake, without any capability but reading."""
    prefix = ["setpriv", "--bounding-set=-all,+dac_read_search,+dac_override", "--inh-caps=-all"]
    return {"prefix": prefix}


def test_a_userfaultfd_that_cannot_be_set_up_is_closed(kernel: None, spawn: Spawn) -> None:
    """Its traps would stay for as long as we live, and nobody would know of it."""
    process = spawn("sleep", "60")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UffdtrackError, match="set the userfaultfd up"):
        attach_uffd(process.pid, 1 << 40, waits=False)
    assert os.listdir("/proc/self/fd") == before
