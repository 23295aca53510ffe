"""Runs the command line in a fork of a process that has imported it: a start takes a third of a second else.

`Preloaded` is the tests' side; the other side is this file as a program, which gets an order a message: what
the command line is, with its three standard files. tests/cli starts the command as a user does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from checkpoint.cli.main import VERBS, main

ROOT = Path(__file__).parent.parent
LONGEST = 1 << 17
TIMEOUT = 120.0


class Preloaded:
    """The process that is forked; it ends with this one. A context manager."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.preloaded", str(theirs.fileno())]
        # Its output is what that of the forks is, pipes: Python has looked at them by then.
        self._process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._one = threading.Lock()
        theirs.close()

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        _, said = self._process.communicate(timeout=TIMEOUT)
        assert not self._process.returncode, said

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """As subprocess.run, of the command line: until it has ended, and nobody has its output open."""
        files = [os.open(os.devnull, os.O_RDONLY)]
        readers: list[int] = []
        for _ in range(2):
            reader, writer = os.pipe()
            files.append(writer)
            readers.append(reader)
        try:
            order = {"words": words, "environment": dict(os.environ), "directory": os.getcwd()}
            pid = self._order(order, files)
            pidfd = os.pidfd_open(pid)
        finally:
            for fd in files:
                os.close(fd)
        try:
            said = _read_all(readers, pidfd)
            status = self._order({"wait": pid})
        except BaseException:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            raise
        finally:
            for fd in (*readers, pidfd):
                os.close(fd)
        return subprocess.CompletedProcess(words, status, *said)

    def _order(self, order: dict[str, Any], files: list[int] | None = None) -> int:
        with self._one:
            socket.send_fds(self._socket, [json.dumps(order).encode()], files or [])
            return int(self._socket.recv(64))


def _read_all(readers: list[int], pidfd: int) -> list[str]:
    said, poll = dict.fromkeys(readers, b""), select.poll()
    for fd in (*readers, pidfd):
        poll.register(fd, select.POLLIN)
    waiting = {*readers, pidfd}
    while waiting:
        ready = poll.poll(TIMEOUT * 1000)
        assert ready, f"it says nothing, and does not end: {said}"
        for fd, _ in ready:
            data = os.read(fd, 1 << 16) if fd in said else b""
            if data:
                said[fd] += data
            else:
                poll.unregister(fd)
                waiting.remove(fd)
    return [data.decode() for data in said.values()]


# -- the other side -----------------------------------------------------------------------------------


def _become(order: dict[str, Any], files: list[int]) -> None:
    """Be the command line."""
    for fd, standard in enumerate(files):
        os.dup2(standard, fd)
        os.close(standard)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    sys.argv = ["uffdtrack", *order["words"]]
    main()


def serve(orders: socket.socket) -> None:
    for verb in VERBS:
        importlib.import_module(f"checkpoint.cli.{verb}")
    gc.freeze()  # so that a fork need not copy what it only counts
    while True:
        data, files, *_ = socket.recv_fds(orders, LONGEST, 3)
        if not data:
            return
        order = json.loads(data)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                orders.close()
                return _become(order, files)
            for fd in files:
                os.close(fd)
        with suppress(BrokenPipeError):
            orders.send(str(answer).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
