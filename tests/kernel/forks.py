"""tests/programs/forks.c: a tree of processes that talk to each other, and what no instant of it can have."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import numpy as np

from checkpoint.tree import TreeEpoch
from tests.helpers import wait_for

MINE, SHARED = 0x100000000000, 0x200000000000


class Forks:
    """tests/programs/forks.c"""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()

    def ask(self, what: str) -> str:
        self.tell(what)
        return self.read()

    def tell(self, what: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(what.encode())
        self.process.stdin.flush()

    def errors(self) -> int:
        return int(self.ask("s").split()[0])

    def token(self) -> int:
        return int(self.ask("s").split()[1])

    def go_on(self, token: int) -> None:
        """Until the token's number is larger."""
        self.tell("g")
        wait_for(lambda: self.token() > token, "the token goes round")


def cut_errors(entry: TreeEpoch) -> list[str]:
    """What no instant of forks.c can have."""
    wrong = []
    tokens: dict[int, int] = {}
    pages = set()
    for process in entry.processes:
        view = entry.view(process)
        if not np.isin([MINE // 4096, SHARED // 4096], view.pages).all():
            continue  # just after exec
        mine = view.read(np.array([MINE // 4096], np.uint64))[0].tobytes()
        pid, slot, count, token = struct.unpack_from("<4Q", mine)
        shared = view.read(np.array([SHARED // 4096], np.uint64))[0].tobytes()
        pages.add(shared)
        if pid != process.pid:
            continue  # it has not begun yet, or is about to end
        ahead = struct.unpack_from("<Q", shared, 8 + 8 * slot)[0] - count
        if ahead not in (0, 1):
            wrong.append(f"slot {slot} of {process.pid} is {ahead} ahead")
        if slot < 3:
            tokens[slot] = token
    if len(pages) != 1:
        wrong.append(f"{len(pages)} contents of one shared page")
    if len(tokens) == 3 and not tokens[0] >= tokens[1] >= tokens[2] >= tokens[0] - 1:
        wrong.append(f"tokens {tokens}")
    if len(tokens) != 3:
        wrong.append(f"a process of the ring is missing: {tokens}")
    return wrong


def is_dead(pid: int) -> bool:
    """Whether it has ended. The host's init may reap an orphan a second or two later."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
