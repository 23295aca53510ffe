"""A network between an active and its standby that fails at an exact message.

Threads take whole frames from one side to the other. Nothing is lost on a link that lives: as TCP does, it
keeps what cannot be delivered now.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint.replication.links.frames import HEADER, Kind

THERE, BACK = "there", "back"
"""From the active to the standby, and back."""
BEFORE, WITHIN, AFTER = "before", "within", "after"
_KINDS = {kind.value: kind for kind in Kind}


@dataclass(frozen=True)
class Frame:
    kind: Kind
    meta: dict[str, Any]
    raw: bytes


@dataclass
class Trigger:
    """Does something once, at a message.

    Attributes:
        when: before it is passed on, when one half of it is, or after that.
        nth: of this kind since the trigger was set, from 1 on.
        do: called in the thread that passes it on.
    """

    kind: Kind
    when: str
    nth: int
    do: Callable[[], None]
    fired: threading.Event = field(default_factory=threading.Event)
    seen: int = 0

    def comes(self, frame: Frame) -> bool:
        """Whether this is the message."""
        if frame.kind is not self.kind or self.fired.is_set():
            return False
        self.seen += 1
        return self.seen >= self.nth  # a later one, where that one's link ended under way

    def fire(self) -> None:
        self.do()
        self.fired.set()


class Relay:
    """Listens at a Unix socket, and passes on to another one. A context manager.

    Attributes:
        known: what the standby knows to be released, at least: it has acknowledged an END that said so.
        whole: how many ENDs were delivered; `acknowledged`: how many ACKs.
        delays: seconds that each frame takes, of each way.
    """

    def __init__(self, path: Path, to: Path) -> None:
        self.trigger: Trigger | None = None
        self.known = [0, 0]
        self._said: dict[int, list[int]] = {}
        self.whole = self.acknowledged = 0
        self.delays = {THERE: 0.0, BACK: 0.0}
        self._to = to
        self._open = {THERE: threading.Event(), BACK: threading.Event()}
        self.heal()
        self._links: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._ended = False
        self._start(self._accept)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        self.heal()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    # -- failures ---------------------------------------------------------------------------------

    def cut(self) -> None:
        """End the links there are; a new one can be made."""
        for sockets in list(self._links):
            for one in sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def half_close(self, way: str) -> None:
        """The receiver of that way is told that nothing more comes."""
        for active, standby in list(self._links):
            with contextlib.suppress(OSError):
                (standby if way == THERE else active).shutdown(socket.SHUT_WR)

    def part(self, *ways: str) -> None:
        """Deliver nothing on these ways, until `heal`."""
        for way in ways:
            self._open[way].clear()

    def heal(self) -> None:
        for gate in self._open.values():
            gate.set()
        self.delays = dict.fromkeys(self.delays, 0.0)

    # -- threads ----------------------------------------------------------------------------------

    def _start(self, work: Callable[..., None], *given: Any) -> None:
        thread = threading.Thread(target=work, args=given, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ended:
            try:
                active, _ = self._listener.accept()
            except OSError:
                return
            standby = socket.socket(socket.AF_UNIX)
            try:
                standby.connect(str(self._to))
            except OSError:
                active.close()
                standby.close()
                continue
            link = active, standby
            self._links.append(link)
            if self._ended:
                self.cut()
            ends = threading.Barrier(2)
            self._start(self._pass, active, standby, THERE, ends, link)
            self._start(self._pass, standby, active, BACK, ends, link)

    def _pass(
        self, source: socket.socket, to: socket.socket, way: str, ends: threading.Barrier,
        link: tuple[socket.socket, socket.socket],
    ) -> None:  # fmt: skip
        try:
            while frame := _read(source):
                self._deliver(frame, to, way)
            self._open[way].wait()
            to.shutdown(socket.SHUT_WR)
        except OSError:
            for one in link:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        if ends.wait() == 0:
            self._links.remove(link)
            for one in link:
                one.close()

    def _deliver(self, frame: Frame, to: socket.socket, way: str) -> None:
        if frame.kind is Kind.END:
            self._said[frame.meta["epoch"]] = frame.meta["released"]
        if frame.kind is Kind.ACK:
            self.known = self._said[frame.meta["epoch"]]
        if self.delays[way]:
            time.sleep(self.delays[way])
        trigger = self.trigger if self.trigger and self.trigger.comes(frame) else None
        half = len(frame.raw) // 2
        if trigger and trigger.when == BEFORE:
            trigger.fire()
        self._open[way].wait()
        self.acknowledged += frame.kind is Kind.ACK  # it may be seen at once
        if trigger and trigger.when == WITHIN:
            to.sendall(frame.raw[:half])
            trigger.fire()
            self._open[way].wait()
            to.sendall(frame.raw[half:])
        else:
            to.sendall(frame.raw)
        self.whole += frame.kind is Kind.END
        if trigger and trigger.when == AFTER:
            trigger.fire()


def _read(source: socket.socket) -> Frame | None:
    """The next frame; None: the sender has ended."""
    head = _exactly(source, HEADER.size)
    if head is None:
        return None
    _, number, of_meta, of_body, _ = HEADER.unpack(head)
    rest = _exactly(source, of_meta + of_body)
    if rest is None:
        return None
    return Frame(_KINDS[number], json.loads(rest[:of_meta]), head + rest)


def _exactly(source: socket.socket, n: int) -> bytes | None:
    data = bytearray()
    while len(data) < n:
        part = source.recv(n - len(data))
        if not part:
            return None
        data += part
    return bytes(data)
