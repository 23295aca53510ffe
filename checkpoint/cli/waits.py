"""A session's waits between two epochs: for time, signals, ends and limits."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Generic, Self

from checkpoint.cli.common import say
from checkpoint.report import writing
from checkpoint.rollback.requests import Requests
from checkpoint.session import R, Taker
from checkpoint.targets.children import Delegation, describe_child
from checkpoint.targets.process import ProcessTarget
from checkpoint.tree_session import TreeSession
from uffdtrack.errors import OutputError

LOOK = 0.25
LOOK_FOR = 5.0
"""Seconds between two looks for a child that does the work; the time without an epoch before we look."""
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STDOUT = 1
LAST = 2.0
"""Seconds that a reader of our output has for each piece of it when we have to end."""


def poll_fds(seconds: float, *fds: int) -> set[int]:
    """Wait until one is readable or the time is over; returns those that are. Ignores negative numbers."""
    poll = select.poll()
    for fd in fds:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(seconds * 1000)}


class Interrupt:
    """Turns SIGINT, SIGTERM and SIGHUP into the end of a wait; current work is finished first.

    After the block we ignore them: a terminal sends one to us and one to the process that waits for us, which
    passes it on; the second must not interrupt the orderly end that the first has begun.
    """

    def __init__(self, lifeline: int = -1) -> None:
        """Args:
        lifeline: readable when the process that waits for us has died, which ends a wait, too; -1: none.
        """
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ends = self._reader, lifeline
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def _note(self, number: int, frame: FrameType | None) -> None:
        os.write(self._writer, b"x")

    def __enter__(self) -> Self:
        for number in ENDINGS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number in ENDINGS:
            signal.signal(number, signal.SIG_IGN)
        for fd in (self._reader, self._writer, self._woken):
            os.close(fd)

    def seen(self) -> bool:
        """Whether we were interrupted."""
        return bool(poll_fds(0, *self._ends))

    def write(self, line: str) -> None:
        """Write to stdout, as fast as it is read. In any thread, one at a time.

        Raises:
            OutputError: it cannot be written, or we have to end and nobody reads it: a target must not stay
                tracked for that.
        """
        left = line.encode()
        with writing():
            while left:
                left = left[self._write_some(left) :]

    def _write_some(self, data: bytes) -> int:
        """Returns how much; 0: try again. A look beforehand is no promise: others may write there, too."""
        try:
            return os.pwritev(STDOUT, [data], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            self._await(STDOUT, select.POLLOUT)
            return 0
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        if stat.S_ISREG(os.fstat(STDOUT).st_mode):
            return os.write(STDOUT, data)
        return self._write_beside(data)

    def _write_beside(self, data: bytes) -> int:
        """In another thread, which may wait for ever: a terminal knows no other way."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        results: list[int | OSError] = []

        def write() -> None:
            try:
                results.append(os.write(STDOUT, data))
            except BlockingIOError:
                results.append(0)
            except OSError as error:
                results.append(error)
            os.close(writer)

        try:
            threading.Thread(target=write, daemon=True).start()
            self._await(reader, select.POLLIN)
        finally:
            os.close(reader)
        (result,) = results
        if isinstance(result, OSError):
            raise result
        if not result:
            self._await(STDOUT, select.POLLOUT)
        return result

    def _await(self, fd: int, event: int) -> None:
        """Raises: OutputError: we have to end, and nobody reads."""
        poll = select.poll()
        poll.register(fd, event)
        for end in self._ends:
            if end >= 0:
                poll.register(end, select.POLLIN)
        if fd in {ready for ready, _ in poll.poll()}:
            return
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(LAST * 1000):
            raise OutputError(f"nobody has read the output for {LAST:.0f} s, and we have to end")

    def rest(self, seconds: float) -> None:
        """Wait for some seconds, for `wake`, or until we are interrupted."""
        poll_fds(seconds, *self._ends, self._woken)

    def wake(self) -> None:
        """End a wait, or the next one. In any thread."""
        os.eventfd_write(self._woken, 1)

    def woken(self) -> bool:
        """Whether somebody has called `wake` since the last time."""
        try:
            return bool(os.eventfd_read(self._woken))
        except BlockingIOError:
            return False


class Wait(Interrupt):
    """The same, and it ends a wait when the process ends."""

    def __init__(self, target: ProcessTarget, lifeline: int) -> None:
        super().__init__(lifeline)
        self._target = target
        self._poll = select.poll()
        target.wake = [fd for fd in (*self._ends, target.process.pidfd, self._woken) if fd >= 0]
        for fd in target.wake:
            self._poll.register(fd, select.POLLIN)
        self._full = -1

    def wait(self, seconds: float) -> bool:
        """Also ends at the target's limit of dirty pages, and by `wake`.

        True: interrupted, or the target has ended.
        """
        full = self._target.space.full_fd
        if full != self._full:  # its memory is another one
            if self._full >= 0:
                self._poll.unregister(self._full)
            if full >= 0:
                self._poll.register(full, select.POLLIN)
            self._full = full
        ready = {fd for fd, _ in self._poll.poll(seconds * 1000)}
        return bool(ready) and not self.woken() and bool(ready - {full, self._woken})


class TreeWait(Interrupt):
    """The same for a tree: it ends a wait when all processes have ended."""

    def __init__(self, lifeline: int) -> None:
        super().__init__(lifeline)
        self.session: TreeSession | None = None

    def wait(self, seconds: float) -> bool:
        """Also ends at a limit of dirty pages, and by `wake`. True: interrupted, or all have ended."""
        assert self.session
        end = time.monotonic() + seconds
        full = {fd for fd in self.session.fds if fd >= 0}
        while not self.session.ended():
            # One that has ended is news only when it was the last.
            living = {m.target.process.pidfd for m in self.session.members if not m.target.ended()}
            left = max(0.0, end - time.monotonic())
            # Who is not followed may be the last.
            ready = poll_fds(left if living else min(left, LOOK), *self._ends, *full, *living, self._woken)
            if self.woken():
                return False
            if ready - full - living:
                return True
            if ready & full or (not ready and time.monotonic() >= end):
                return False
        return True


class ServingWait(Generic[R]):
    """Waits like another wait, and meanwhile does what others ask the session for."""

    def __init__(self, requests: Requests, session: Taker[R], wait: Callable[[float], bool]) -> None:
        """Args:
        requests: who asks ends the wait.
        """
        self._requests = requests
        self._session: Taker[R] = session
        self._wait = wait

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while True:
            self._requests.serve()  # at once: who has asked while an epoch was taken ends no wait
            if self._session.pipeline.failed:
                return False
            if self._wait(max(0.0, end - time.monotonic())):
                return True
            if not self._requests.asked() or time.monotonic() >= end:
                return False


class ChildWait:
    """Waits like another wait, and says once if a child, which is in no epoch, does the work."""

    def __init__(self, pid: int, name: str, wait: Callable[[float], bool]) -> None:
        self._delegation = Delegation(pid)
        self._name = name
        self._wait = wait
        self._until = time.monotonic() + LOOK_FOR
        self._next = 0.0

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._delegation.told:
            self._look()
            asked = time.monotonic()
            if asked > self._until or end - asked <= LOOK:
                break
            if self._wait(LOOK):
                return True
            if time.monotonic() - asked < LOOK:
                return False  # a limit of dirty pages
        return self._wait(max(0.0, end - time.monotonic()))

    def _look(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK
        child = self._delegation.look()
        if child:
            say(
                f"{self._name} has a child process {describe_child(child)}, which is not in these "
                "checkpoints; --children takes the whole tree"
            )
