"""What the outside sees of a guest that is replicated, all of it, and what it must look like.

Each recorder has a place for the active's device and one for the standby's, so that it is known who has sent
what, and in which order: what was sent before is seen before.
"""

from __future__ import annotations

import os
import select
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np

ACTIVE, STANDBY = 0, 1


class OutsideError(AssertionError):
    """The outside has seen what it must not see."""


class Outside(ABC):
    """A recorder.

    Attributes:
        options: of the command line, for each role.
        changed: notified when something was seen.
        may_mix: the active may send what it was about to send, and what the standby sends, too, behind the
            standby's first: with a lease, where it was stopped between looking at that and sending.
    """

    may_mix = False
    options: tuple[tuple[str, ...], tuple[str, ...]]

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._ends, self._end = os.pipe()
        self._thread = threading.Thread(target=self._record_all, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        os.write(self._end, b"x")
        self._thread.join()
        for fd in (self._ends, self._end):
            os.close(fd)

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    @abstractmethod
    def count(self) -> int:
        """How far the guest has come, as the outside sees it: numbers."""

    @property
    @abstractmethod
    def has_moved(self) -> bool:
        """Whether the standby has sent anything."""

    @abstractmethod
    def sent_by_active(self) -> int:
        """So much is the active's for sure: bytes, or packets."""

    @abstractmethod
    def check(self, known: int, tip: int | None) -> None:
        """Check all that was seen.

        Args:
            known: so much the standby knew to be released when it took over: bytes, or packets.
            tip: up to there it had the output then; None: it has not taken over.

        Raises:
            OutsideError: something is missing, twice, in conflict, or sent by both.
        """

    @abstractmethod
    def _record_all(self) -> None: ...

    def _readable(self, poll: select.poll) -> list[int] | None:
        """None: it is to end."""
        ready = [fd for fd, _ in poll.poll(None if self._slow is None else self._slow)]
        return None if self._ends in ready else ready

    _slow: float | None = None


class Streams(Outside):
    """Serial ports that lead to a FIFO each."""

    def __init__(self, directory: Path, step: int = 1) -> None:
        """Args: step: between two numbers that the guest prints."""
        super().__init__()
        self._step = step
        self.seen = [bytearray(), bytearray()]
        self.mixed = False
        """Whether the active has sent something behind the standby's first byte."""
        self._fds = []
        paths = [directory / "active.fifo", directory / "standby.fifo"]
        for path in paths:
            os.mkfifo(path)
            self._fds.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))  # so that no writer waits for us
        self.options = tuple(("--serial", str(path)) for path in paths)  # type: ignore[assignment]
        self.start()

    def close(self) -> None:
        super().close()
        for fd in self._fds:
            os.close(fd)

    def _record_all(self) -> None:
        poll = select.poll()
        for fd in (*self._fds, self._ends):
            poll.register(fd, select.POLLIN)
        while (ready := self._readable(poll)) is not None:
            with self.changed:
                for who in (ACTIVE, STANDBY):  # in this order: what was sent first is read first
                    if who == ACTIVE or self._fds[STANDBY] in ready:
                        self._take(who)
                self.changed.notify_all()

    def _take(self, who: int) -> None:
        while True:
            try:
                data = os.read(self._fds[who], 65536)
            except BlockingIOError:
                return
            if who == ACTIVE and self.seen[STANDBY]:
                self.mixed = True
            self.seen[who] += data

    @property
    def has_moved(self) -> bool:
        return bool(self.seen[STANDBY])

    def count(self) -> int:
        last = self.seen[STANDBY] if self.seen[STANDBY].count(b"\n") > 1 else self.seen[ACTIVE]
        lines = last[: last.rfind(b"\n") + 1].split(b"\n")
        return int(lines[-2]) // self._step if len(lines) > 1 and lines[-2].isdigit() else 0

    def sent_by_active(self) -> int:
        return len(self.seen[ACTIVE])

    def check(self, known: int, tip: int | None) -> None:
        first, second = bytes(self.seen[ACTIVE]), bytes(self.seen[STANDBY])
        right = counted(len(first) + len(second), self._step)
        if not right.startswith(first):
            raise OutsideError(f"the active has sent {_differs(first, right)}")
        if self.mixed and not self.may_mix:
            raise OutsideError("the active has sent something behind the standby's first byte")
        if tip is not None and tip < len(first):
            raise OutsideError(f"{len(first)} bytes were released, and the standby has {tip} of them")
        if second:
            at = next((p for p in range(len(first), -1, -1) if right.startswith(second, p)), None)
            if at is None:
                raise OutsideError(f"behind {first[-40:]!r} the standby has sent {second[:40]!r}")
            if at < known:
                raise OutsideError(f"the standby repeats from {at} on, and knew of {known}")


class OneFile(Outside):
    """Serial ports that lead to the same file: it must not show any repeat at all."""

    def __init__(self, directory: Path, step: int = 1) -> None:
        super().__init__()
        self._step = step
        self._path = directory / "serial"
        self._path.touch()
        self.options = (("--serial", str(self._path)),) * 2
        self._slow = 2.0
        self._count = 0
        self.start()

    def _record_all(self) -> None:
        poll = select.poll()
        poll.register(self._ends, select.POLLIN)
        while self._readable(poll) is not None:
            with self.changed:
                self._count = self._path.read_bytes().count(b"\n")
                self.changed.notify_all()

    @property
    def has_moved(self) -> bool:
        return True  # that cannot be seen

    def count(self) -> int:
        return self._count

    def sent_by_active(self) -> int:
        return 0  # that cannot be seen

    def check(self, known: int, tip: int | None) -> None:
        data = self._path.read_bytes()
        right = counted(len(data), self._step)
        if not right.startswith(data):
            raise OutsideError(f"the file has {_differs(data, right)}")


_counted: dict[int, bytes] = {}


def counted(size: int, step: int) -> bytes:
    """What a guest that counts prints, at least so many bytes of it."""
    text, n = _counted.get(step, b""), 1000
    while len(text) < size:
        n *= 4
        text = b"".join(b"%d\n" % number for number in np.arange(step, (n + 1) * step, step))
        _counted[step] = text
    return text


def _differs(data: bytes, right: bytes) -> str:
    at = next(i for i, (a, b) in enumerate(zip(data, right, strict=False)) if a != b)
    return f"{data[max(at - 20, 0) : at + 20]!r} where {right[max(at - 20, 0) : at + 20]!r} is right"
