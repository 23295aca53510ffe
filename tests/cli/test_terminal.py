"""Output on a terminal, where Ctrl-C ends the session in order, and into a pipe that is full."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.helpers import Run, Spawn, wait_for


class Terminal:
    """The command line in the foreground of a terminal of its own."""

    def __init__(self, *argv: object) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execv(sys.executable, [sys.executable, "-m", "checkpoint", *map(str, argv)])
        self.text = ""

    def read_until(self, pattern: str, seconds: float = 60) -> re.Match[str] | None:
        """Read on until the pattern is there, or None: the other side has closed."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text!r}"
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    part = os.read(self.fd, 65536)
                except OSError:  # EIO: nobody has the terminal open any more
                    return None
                self.text += part.decode()
        return found

    def press_ctrl_c(self) -> None:
        os.write(self.fd, b"\x03")

    def end(self) -> int:
        """The exit status. A command that runs on keeps the terminal open."""
        self.read_until("untracked|has ended|error|Error")
        pidfd = os.pidfd_open(self.pid)
        assert select.select([pidfd], [], [], 60)[0], self.text
        os.close(pidfd)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ctrl_c_leaves_the_command_of_run_alone(kernel: None, tmp_path: Path) -> None:
    reader = "import sys, time; print('read', repr(sys.stdin.read()), flush=True); time.sleep(600)"
    terminal = Terminal("run", "-o", tmp_path / "c", "--every", "10ms", "--json", "--",
                        sys.executable, "-c", reader)  # fmt: skip
    row = terminal.read_until(r'\{"schema": "uffdtrack/epoch/1".*?\}')
    assert row
    pid = int(json.loads(row[0])["pid"])
    try:
        # Its input is empty: it neither takes lines from the terminal nor is stopped for trying.
        assert terminal.read_until("read ''")
        terminal.press_ctrl_c()
        assert terminal.end() == 0, terminal.text
        assert f"process {pid} runs on, untracked" in terminal.text
        assert lives(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_command_of_run_reads_a_pipe(kernel: None, spawn: Spawn, tmp_path: Path) -> None:
    process = spawn(
        sys.executable, "-m", "checkpoint", "run", "-o", tmp_path / "c", "--every", "1h", "--json", "--",
        "cat", stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    assert b"uffdtrack/epoch/1" in process.stdout.readline()
    process.stdin.write(b"through\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"through\n"
    process.stdin.close()
    assert process.wait(60) == 0
    assert b"has ended" in process.stderr.read()


def test_second_interrupt_cuts_nothing_off(kernel: None) -> None:
    """The terminal signals the session and the process that waits for it, which passes its own on."""
    script = (
        "import os, signal, types; from checkpoint.cli.waits import ENDINGS, Wait\n"
        "N = types.SimpleNamespace; target = N(process=N(pidfd=-1), space=N(full_fd=-1))\n"
        "with Wait(target, -1) as interrupt:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert interrupt.wait(60) and interrupt.seen()\n"
        "for number in ENDINGS: os.kill(os.getpid(), number)\n"
        "print('to the end')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "to the end\n", done.stderr


def test_ctrl_c_ends_a_session_with_0(kernel: None, spawn: Spawn, tmp_path: Path) -> None:
    process = spawn("sleep", "600")
    for i in range(5):
        terminal = Terminal("checkpoint", process.pid, "-o", tmp_path / str(i), "--every", "10ms", "--json")
        assert terminal.read_until(r'"epoch": 1,')
        terminal.press_ctrl_c()
        assert terminal.end() == 0, terminal.text
        assert f"process {process.pid} runs on, untracked" in terminal.text
    assert process.poll() is None


def test_run_starts_nothing_where_the_directory_is_in_the_way(
    kernel: None, tmp_path: Path, uffdtrack: Run
) -> None:
    chain, mark = tmp_path / "c", tmp_path / "ran"
    uffdtrack("run", "-o", chain, "--count", "1", "--", "sh", "-c", "exec sleep 10 > /dev/null 2>&1")
    uffdtrack("run", "-o", chain, "--count", "1", "--", "touch", mark, code=2)
    (tmp_path / "file").touch()
    uffdtrack("run", "-o", tmp_path / "file", "--count", "1", "--", "touch", mark, code=2)
    assert not mark.exists()
    uffdtrack("run", "-o", tmp_path / "d", "--", "/no/such/program", code=2)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_does_not_wait(spawn: Spawn, kernel: None, tmp_path: Path, unbuffered: str) -> None:
    """No row is lost or torn, whatever Python makes of stdout: the session waits for its reader."""
    process = spawn("sleep", "600")
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, True)
    session = spawn(
        sys.executable, "-m", "checkpoint", "checkpoint", process.pid, "-o", tmp_path / "c",
        "--every", "1ms", "--count", "40", "--json",
        stdout=writer, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writer)
    wait_for(lambda: any(fcntl.ioctl(reader, termios.FIONREAD, bytes(4))), "the pipe is full")
    with open(reader) as rows:
        assert [json.loads(row)["epoch"] for row in rows] == list(range(40))
    assert session.wait() == 0
