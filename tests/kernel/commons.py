"""tests/programs/commons.c: processes that write memory that they share, and what it is at any instant."""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from checkpoint.image import EpochFile
from checkpoint.tree import TreeWriter
from checkpoint.tree_session import TreeSession
from tests.helpers import Build, Spawn
from tests.kernel.rolled import WITHOUT_RSEQ
from tests.oracle import Memory
from uffdtrack import PAGE, TreeWindow, children

AT = 0x200000000000
WORDS = PAGE // 8
MASK = (1 << 64) - 1
SEEDS = itertools.count(os.getpid() << 16)


def mix(seed: int, writer: int, n: int) -> int:
    z = (seed + writer * 0x9E3779B97F4A7C15 + n * 0xBF58476D1CE4E5B9) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


class Commons:
    """The program, and what its memory has to be."""

    def __init__(self, spawn: Spawn, build: Build, writers: int, ways: str, pages: int = 1024) -> None:
        self.writers, self.pages = writers, pages
        self.seed = next(SEEDS)
        command = [str(part) for part in (build("commons"), writers, pages, self.seed, ways)]
        self.process = spawn(*command, env=WITHOUT_RSEQ)
        self.command = b"".join(part.encode() + b"\0" for part in command)
        self.pid = self.process.pid
        assert self.process.stdout and self.process.stdout.readline() == b"ready\n"
        self.children = children(self.pid)
        self.words = np.zeros((pages, writers), np.uint64)
        self.counts = [0] * writers

    def turn(self) -> None:
        """It begins to disturb, or ends that."""
        for pid in (self.pid, *self.children):
            os.kill(pid, signal.SIGUSR1)

    def orphans(self) -> list[int]:
        """Writers that are no descendants of the first one any more."""
        own = {self.pid, *self.children}
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if (path / "cmdline").read_bytes() == self.command and not own & {int(path.name), parent}:
                    found.append(int(path.name))
        return found

    def kill_orphans(self) -> None:
        for pid in self.orphans():
            os.kill(pid, signal.SIGKILL)

    def page_of(self, writer: int, n: int) -> int:
        return mix(self.seed, writer, n) % self.pages

    def errors(self, memory: np.ndarray) -> list[str]:
        """What no instant can have, of one that is later than that of the last call.

        Args:
            memory: words, by page.
        """
        wrong = []
        for writer in range(self.writers):
            count = int(memory[self.pages, writer])
            if count < self.counts[writer]:
                wrong.append(f"{writer} was at {self.counts[writer]}, is at {count}")
                continue
            for n in range(self.counts[writer] + 1, count + 1):
                self.words[self.page_of(writer, n), writer] = n
            self.counts[writer] = count
            differ = np.flatnonzero(memory[: self.pages, writer] != self.words[:, writer])
            # The next write may have come before its count.
            following = self.page_of(writer, count + 1)
            wrong += [
                f"{writer} at {count}, page {page}: {memory[page, writer]}, not {self.words[page, writer]}"
                for page in differ.tolist()
                if page != following or memory[page, writer] != count + 1
            ]
        if (memory[: self.pages, WORDS - 1] != ~np.arange(self.pages, dtype=np.uint64)).any():
            wrong.append("what was written first is not there")
        return wrong


class Watched:
    """A session on it that follows its shared memory, and looks at each epoch.

    Attributes:
        followed: whether its shared memory was not compared in the last stop.
    """

    def __init__(self, stack: ExitStack, commons: Commons, directory: Path, engine: str) -> None:
        self.commons, self.directory = commons, directory
        writer = stack.enter_context(TreeWriter(directory, b"", force=False))
        self.session = stack.enter_context(TreeSession(commons.pid, writer, engine, None, follow_shared=True))
        self._memory, self._epochs = Memory(0), 0
        self._window, self._compared = self.session.tree.window, 0
        self.session.tree.window = self._noting  # type: ignore[method-assign]

    @property
    def followed(self) -> bool:
        return self._compared == self._at_first - 1

    def _noting(self, *args: Any, **named: Any) -> TreeWindow:
        taken = self._window(*args, **named)
        # The first process stores it.
        self._compared = getattr(taken.windows[0], "compared", 0) if taken.windows else self._compared
        return taken

    def take(self) -> list[str]:
        """Take an epoch; returns what is wrong with it."""
        self.session.take()
        files = sorted((self.directory / str(self.commons.pid)).glob("epoch-*.core"))
        if not self._epochs:
            self._at_first = self._compared
        for path in files[self._epochs :]:
            self._memory.apply(EpochFile(path))
        self._epochs = len(files)
        contents = self._memory.read(AT, (self.commons.pages + 1) * PAGE)
        return self.commons.errors(np.frombuffer(contents, np.uint64).reshape(-1, WORDS))
