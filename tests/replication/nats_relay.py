"""Networks between clients and NATS servers, and among these, that fail at an exact message.

Each server has an address of its own for clients, which it advertises, and another one for each of the other
servers. What cannot be delivered now is kept, as TCP does.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.replication.nats_wire import Events, Op, read
from tests.replication.relay import AFTER, BEFORE, WITHIN


@dataclass
class EventTrigger:
    """Does something once, at an event; see `relay.Trigger`."""

    event: str
    when: str
    nth: int
    do: Callable[[], None]
    fired: threading.Event = field(default_factory=threading.Event)
    seen: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def comes(self, event: str) -> bool:
        """Whether this is the one. In any thread; true once."""
        if event != self.event:
            return False
        with self._lock:
            self.seen += 1
            return self.seen == self.nth

    def fire(self) -> None:
        self.do()
        self.fired.set()


class Watch:
    """What the relays of clients look at, in all their threads; replaced for each trial."""

    def __init__(self) -> None:
        self.events = Events("")
        self.trigger: EventTrigger | None = None
        self.counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def begin(self, name: str) -> None:
        with self._lock:
            self.events, self.trigger, self.counts = Events(name), None, {}

    def sees(self, op: Op) -> EventTrigger | None:
        """What is to be done at this message."""
        with self._lock:
            event = self.events.of(op)
            if event:
                self.counts[event] = self.counts.get(event, 0) + 1
            trigger = self.trigger
        return trigger if trigger and event and trigger.comes(event) else None


class Line:
    """Listens at a port of loopback, and passes on to another one.

    Attributes:
        delay: seconds that each piece takes.
    """

    def __init__(self, watch: Watch | None = None) -> None:
        """Args: watch: it sees each message of clients; None: this is between servers."""
        self.to = 0
        self.delay = 0.0
        self._watch = watch
        self._gate = threading.Event()
        self._gate.set()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._ended = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.heal()
        with self._lock:
            for one in self._sockets:
                _shut(one)

    def part(self) -> None:
        """Deliver nothing, until `heal`."""
        self._gate.clear()

    def heal(self) -> None:
        self.delay = 0.0
        self._gate.set()

    def _accept(self) -> None:
        while not self._ended:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                with contextlib.suppress(OSError, UnboundLocalError):
                    near.close()  # that server is not there
                continue
            with self._lock:
                self._sockets |= {near, far}
                if self._ended:
                    _shut(near)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends = threading.Barrier(2)
            for source, to in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, to, ends), daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, ends: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            if self._watch:
                with source.makefile("rb") as file:
                    while op := read(file):
                        self._deliver(op, to)
            else:
                while data := source.recv(1 << 16):
                    self._send(to, data)
            self._gate.wait()
        _shut(source)
        _shut(to)
        if ends.wait() == 0:
            with self._lock:
                self._sockets -= {source, to}
            source.close()
            to.close()

    def _send(self, to: socket.socket, data: bytes) -> None:
        if self.delay:
            time.sleep(self.delay)
        self._gate.wait()
        to.sendall(data)

    def _deliver(self, op: Op, to: socket.socket) -> None:
        assert self._watch
        trigger = self._watch.sees(op)
        if trigger and trigger.when == BEFORE:
            trigger.fire()
        if trigger and trigger.when == WITHIN:
            half = len(op.raw) // 2
            self._send(to, op.raw[:half])
            trigger.fire()
            self._send(to, op.raw[half:])
        else:
            self._send(to, op.raw)
        if trigger and trigger.when == AFTER:
            trigger.fire()


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
