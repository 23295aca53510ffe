"""tests/programs/instants.c: threads that write their memory, and what it is at any instant."""

from __future__ import annotations

import itertools
import os

import numpy as np
import numpy.typing as npt

from checkpoint.recent import RecentSink
from tests.helpers import Build, Spawn
from tests.kernel.commons import mix
from tests.kernel.rolled import WITHOUT_RSEQ
from uffdtrack import PAGE

AT = 0x200000000000 // PAGE
WORDS = [0, 256, 511]
TICK = 63
SEEDS = itertools.count(os.getpid() << 16)


class Instants:
    """The program, and what its memory has to be.

    Attributes:
        counts: the acts of each thread up to the last epoch that was looked at.
    """

    def __init__(self, spawn: Spawn, build: Build, threads: int = 2, pages: int = 128) -> None:
        self.threads, self.pages, self.seed = threads, pages, next(SEEDS)
        # Bound at its start: the linker, which looks up what a signal handler calls, uses the register.
        self.process = spawn(build("instants", "-Wl,-z,now"), threads, pages, self.seed, env=WITHOUT_RSEQ)
        self.pid = self.process.pid
        assert self.process.stdout and self.process.stdout.readline() == b"ready\n"
        self.begin_anew()

    def begin_anew(self) -> None:
        """It has called exec."""
        self.counts = [0] * self.threads
        self._values = np.zeros((self.threads, self.pages), np.uint64)

    def _act(self, thread: int, n: int) -> tuple[int, int]:
        """The page, and what its words are after the n-th act."""
        return mix(self.seed, thread, n) % self.pages, n if n % 8 else 0

    def errors(self, recent: RecentSink, number: int) -> list[str]:
        """What no instant can have, of an epoch that is later than that of the last call."""
        view = recent.view(number)
        wanted = np.arange(AT, AT + 1 + self.threads * self.pages, dtype=np.uint64)
        held = np.isin(wanted, view.pages)
        contents: npt.NDArray[np.uint8] = np.zeros((len(wanted), PAGE), np.uint8)
        contents[held] = view.read(wanted[held])
        words = contents.view(np.uint64)
        wrong = self._wrong_tick(int(words[0, TICK]), [t.regs[24:32] for t in view.epoch.threads])
        for thread in range(self.threads):
            own = words[1 + thread * self.pages :][: self.pages, WORDS]
            wrong += self._wrong_pages(thread, int(words[0, thread]), own)
        return [f"epoch {number}: {text}" for text in wrong]

    def _wrong_tick(self, count: int, registers: list[bytes]) -> list[str]:
        if any(0 <= int.from_bytes(r12, "little") - count <= 1 for r12 in registers):
            return []
        return [f"no register is at {count}"]

    def _wrong_pages(self, thread: int, count: int, words: npt.NDArray[np.uint64]) -> list[str]:
        if count < self.counts[thread]:
            return [f"thread {thread} was at {self.counts[thread]}, is at {count}"]
        values = self._values[thread]
        for n in range(self.counts[thread] + 1, count + 1):
            page, value = self._act(thread, n)
            values[page] = value
        self.counts[thread] = count
        page, value = self._act(thread, count + 1)  # it may have begun
        differ = words != values[:, None]
        differ[page] &= words[page] != value
        return [
            f"thread {thread} at {count}, page {page}: {words[page].tolist()}, not {values[page]}"
            for page in np.flatnonzero(differ.any(axis=1)).tolist()
        ]
