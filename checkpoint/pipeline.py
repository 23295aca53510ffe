"""Epochs are written while their target runs on: one thread writes them, one makes them safe, in groups."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from checkpoint.epoch import since
from checkpoint.job import Job
from checkpoint.sink import Draft, make_safe

BUFFERS, TOGETHER = 8, 32
BYTES = 64 << 20
"""So many epochs, of so many bytes together, wait to be written before the next stop has to wait.

Of those that are kept in memory so many."""
SMALL = 1 << 20
"""An epoch of so many bytes at most takes longer to hand over to another thread than to write, if no disk is
waited for."""
UNSAFE = 256
"""So many files may be written and not safe; each is open."""


class Pipeline:
    """Takes epochs from a session's thread. Two threads of its own begin when they are needed.

    After a failure nothing that follows is kept: all that is not safe is dropped, and the next epoch has it.

    Attributes:
        tell: gets each epoch when it is safe, in the thread that made it safe.
        durable: an epoch is safe so many seconds after it was taken, if the disk can do that: until half of
            them are over it waits for others, to become safe with them. None: it does not wait.
        together: an epoch is safe as soon as it is written, so that one thread does both.
        here: no disk is waited for while an epoch is written: the session's thread writes small ones.
        wake: called in any thread when something has failed; `calm`: in the session's thread, when it knows.
    """

    def __init__(self) -> None:
        self.tell: Callable[[Any], None] = lambda job: None
        self.durable: float | None = None
        self.together = self.here = False
        self.wake: Callable[[], None] = lambda: None
        self.calm: Callable[[], object] = lambda: None
        # Nobody is woken but for what it waits for: each wake takes the interpreter's lock.
        lock = threading.RLock()
        self._changed, self._to_write, self._to_sync = (threading.Condition(lock) for _ in range(3))
        self._waiting: deque[Job] = deque()
        self._written: deque[tuple[Job, Sequence[Draft]]] = deque()
        self._writing = self._syncing = 0
        self._bytes = 0
        self._hurry = self._ends = False
        # What failed first; whether it keeps what was written already from becoming safe; what was dropped.
        self._error: BaseException | None = None
        self._unsafe = False
        self._dropped: list[Job] = []
        self._untold: BaseException | None = None
        self._threads: list[threading.Thread] = []

    # -- the session's thread ---------------------------------------------------------------------

    def put(self, job: Job) -> None:
        """Take an epoch. It is written while the session goes on, unless it is a base, or to be safe at once.

        Raises:
            StorageError, OutputError: see `check`; without threads or of a base, its own, too.
        """
        if job.base or job.at_once or not self._begin():
            self.run(job)
            self.tell(job)
            return
        with self._changed:
            self._bytes += job.size
            here = self.here and job.size <= SMALL and not (self._waiting or self._writing)
            if here:
                self._writing += 1
            else:
                self._waiting.append(job)
                self._to_write.notify()
        if here:
            self._write(job)

    def run(self, job: Job) -> None:
        """Write an epoch and make it safe now, in this thread.

        Raises:
            StorageError: it is not safe, or an earlier one is not; the next one has it all.
            OutputError: see `check`.
        """
        try:
            self.drain()
            make_safe(job.write())
            job.commit(last=True)
        except BaseException:
            job.drop()
            job.take_back()
            raise

    def make_room(self) -> float:
        """Wait until there is room for one more epoch; returns for how many microseconds.

        Raises:
            StorageError, OutputError: see `check`.
        """
        if not self._threads:
            self.check()
            return 0.0
        started = time.perf_counter()
        with self._changed:
            waits = self._is_full()
            self._changed.wait_for(lambda: self.failed or not self._is_full())
        self.check()
        return since(started) if waits else 0.0

    def check(self) -> None:
        """Raises what has failed since the last time; what was not safe was taken back before that.

        Raises:
            StorageError: an epoch could not be written.
            OutputError: `tell` could not tell the user; the epochs are safe.
        """
        if not self.failed:
            return
        with self._changed:
            self._changed.wait_for(lambda: self.is_idle)
            dropped, error = self._dropped, self._error or self._untold
            self._dropped, self._error, self._untold, self._unsafe = [], None, None, False
            self.calm()
        for job in reversed(dropped):
            job.take_back()
        if error:
            raise error

    def drain(self) -> None:
        """Wait until all is safe. Raises: see `check`."""
        self.await_idle()
        self.check()

    def await_idle(self) -> bool:
        """Wait until all is safe; False: `check` has something to raise."""
        if not self._threads:
            return not self.failed
        with self._changed:
            self._hurry = True
            self._to_sync.notify()
            self._changed.wait_for(lambda: self.is_idle)
            self._hurry = False
        return not self.failed

    def arrived(self) -> None:
        """Something is not on its way any more. In any thread."""
        with self._changed:
            self._to_sync.notify()

    def close(self) -> None:
        """Wait until all is safe, and end the threads. Raises: see `check`."""
        try:
            self.drain()
        finally:
            with self._changed:
                self._ends = True
                self._to_write.notify()
                self._to_sync.notify()
            for thread in self._threads:
                thread.join()
            self._threads = []
            self._ends = False

    @property
    def failed(self) -> bool:
        """Whether `check` has something to raise."""
        return bool(self._error or self._untold)

    @property
    def is_idle(self) -> bool:
        """Whether all is safe."""
        return not (self._waiting or self._written or self._writing or self._syncing)

    def _is_full(self) -> bool:
        waiting = len(self._waiting) + self._writing
        return (
            waiting >= (TOGETHER if self.together else BUFFERS)
            or (waiting > 0 and self._bytes > BYTES)
            or self._drafts() >= UNSAFE
        )

    def _begin(self) -> bool:
        """Start the threads; False: we may have none (RLIMIT_NPROC, pids.max)."""
        work = [self._write_all] if self.together else [self._write_all, self._sync_all]
        if self._threads:
            return len(self._threads) == len(work)
        with contextlib.suppress(RuntimeError):
            for one in work:
                thread = threading.Thread(target=one, daemon=True)
                thread.start()
                self._threads.append(thread)
        return len(self._threads) == len(work)

    # -- the two threads --------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._to_write.wait_for(lambda: self._waiting or self._ends)
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                self._writing += 1
            self._write(job)

    def _write(self, job: Job) -> None:
        """One that counts as `_writing`; a failure is told by `check`."""
        drafts: Sequence[Draft] | None = None
        error: BaseException | None = None
        try:
            if not self._error:
                drafts = job.write()
                if self.together:
                    make_safe(drafts)
                    job.commit(last=True)
                    self._tell(job)
        except BaseException as caught:
            error = caught
        with self._changed:
            if drafts is None or error:
                self._fail([job], error)
            elif not self.together:
                self._written.append((job, drafts))
            self._writing -= 1
            self._bytes -= job.size
            if self._time_left() is not None:
                self._to_sync.notify()
            self._changed.notify_all()

    def _sync_all(self) -> None:
        while True:
            with self._changed:
                while (left := self._time_left()) != 0.0:
                    if self._ends and not self._written:
                        return
                    self._to_sync.wait(left)
                group = [self._written.popleft()]
                while self._has_come():
                    group.append(self._written.popleft())
                self._syncing += 1
            done = 0
            error: BaseException | None = None
            try:
                if not self._unsafe:
                    make_safe([draft for _, drafts in group for draft in drafts])
                    for job, _ in group:
                        job.commit(last=done == len(group) - 1)
                        done += 1
                        self._tell(job)
            except BaseException as caught:
                error = caught
            with self._changed:
                if done < len(group):
                    self._unsafe = True
                    self._fail([job for job, _ in group[done:]], error)
                self._syncing -= 1
                self._changed.notify_all()

    def _time_left(self) -> float | None:
        """Seconds until what is written has to become safe; None: nothing is, or `arrived` will tell."""
        if self._written and (self._hurry or self.failed or self._drafts() >= UNSAFE // 2):
            return 0.0
        if not self._has_come():
            return None
        return max(0.0, self._written[0][0].taken + (self.durable or 0.0) / 2 - time.perf_counter())

    def _has_come(self) -> bool:
        """Whether what was written first is not on its way."""
        return bool(self._written) and not any(draft.is_on_its_way for draft in self._written[0][1])

    def _drafts(self) -> int:
        return sum(len(drafts) for _, drafts in self._written)

    def _tell(self, job: Job) -> None:
        try:
            if not self._untold:
                self.tell(job)
        except BaseException as error:
            self._untold = error
            self.wake()

    def _fail(self, jobs: Sequence[Job], error: BaseException | None) -> None:
        """Drop epochs, the last first: at no time is one there that lacks the one before."""
        for job in reversed(jobs):
            try:
                job.drop()
            except Exception as another:
                error = error or another
        self._dropped += jobs
        self._error = self._error or error
        self.wake()
