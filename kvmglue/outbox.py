"""What a VM has sent and nobody outside has seen yet: it is held, and released in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

from kvmglue._sys import ffi, lib
from kvmglue.output import Output, Positions, all_before, earlier, later
from uffdtrack.closing import Closing
from uffdtrack.errors import CycleError, OutputError

_CHUNK = 65536
_TOGETHER = 64
"""Packets that are taken with one call."""


class Machine(Protocol):
    """The VM, as its outbox sees it."""

    @property
    def native(self) -> Any: ...
    @property
    def is_open(self) -> bool: ...
    def connect(self, fd: int) -> None: ...
    def disconnect(self) -> None: ...


class SerialBackend(Protocol):
    """Where the serial port leads to.

    Attributes:
        repeatable: writing the same bytes at the same position again changes nothing.
    """

    repeatable: bool

    def write(self, at: int, data: bytes) -> int:
        """Write at a position of the stream, which is where the last write ended, or before.

        Returns:
            How many of the bytes were written; 0: its reader is slow.

        Raises:
            OSError: it is full, or its reader has gone.
        """

    def close(self) -> None: ...


class NetBackend(Protocol):
    """Where the network device leads to.

    Attributes:
        fd: each read gives one packet that has come; it does not block.
    """

    fd: int

    def send(self, packet: bytes) -> bool:
        """Send a packet; False: try again.

        Raises:
            OSError: it can be sent no more.
        """

    def close(self) -> None: ...


class Outbox(Closing):
    """Holds a VM's output until it may be seen outside. A context manager; close it before its VM.

    Together with what the VM has queued, 1 MiB of serial output and 4096 packets are held at most; then that
    device is not ready, and the guest waits. The order of bytes, and that of packets, is kept; there is none
    between the two. Packets that come in go to the guest at once.

    Args:
        vm: nobody else takes its output.
        serial, net: where released output goes; None: nowhere. They are closed with it.
    """

    def __init__(
        self, vm: Machine, serial: SerialBackend | None = None, net: NetBackend | None = None
    ) -> None:
        self.vm = vm
        self.serial = serial
        self.net = net
        if net:
            vm.connect(net.fd)
        # What is held begins at what was released. `_mark`: up to where epochs have it, not before that.
        # `_granted`: up to where it may be released, whatever is taken back.
        self._bytes = bytearray()
        self._packets: deque[bytes] = deque()
        self._released = self._mark = self._granted = (0, 0)
        self._open = True
        self._lock = threading.Lock()
        self._releasing = threading.Lock()
        self._text = ffi.new("char[]", _CHUNK)
        self._data = ffi.new("uint8_t[]", _TOGETHER * int(lib.KG_PACKET_MOST))
        self._lengths = ffi.new("uint16_t[]", _TOGETHER)

    @property
    def collected(self) -> Positions:
        """Up to where `collect` has given it, and nobody has taken it back."""
        return self._mark

    @property
    def released(self) -> Positions:
        """Up to where the backends have it."""
        return self._released

    def restore(self, released: Positions, output: Output) -> None:
        """Begin where another run of this guest was, before its VM runs here.

        Args:
            released: up to where the backends have the output, as far as is known.
            output: what that run had collected: from `released`, or from before it, to its end.

        Raises:
            CycleError: something was collected here already.
            InvalidInputError: `released` is not within `output`.
        """
        held = output.since(released)
        with self._lock:
            if self._bytes or self._packets or self._mark != (0, 0):
                raise CycleError("an outbox that has held something cannot be restored")
            self._bytes += held.serial
            self._packets.extend(held.packets)
            self._released, self._mark = released, output.end
            self._hold(len(held.serial), len(held.packets))

    def collect(self) -> Output:
        """Take what the devices have; returns all since the last time, or since what was taken back.

        In a window the vCPUs stand meanwhile, so that it is what they had sent at that instant.

        Raises:
            CycleError: it, or the VM, is closed.
        """
        with self._lock:
            self._check_open()
            self._take()
            begin = self._mark
            self._mark = self._end()
            serial_at, packet_at = (a - b for a, b in zip(begin, self._released, strict=True))
            serial = bytes(self._bytes[serial_at:])
            return Output(begin[0], serial, begin[1], list(islice(self._packets, packet_at, None)))

    def take_back(self, at: Positions) -> None:
        """An epoch that had the output from there on was dropped: the next `collect` begins there again.

        If several are, the order does not matter. What was released is not taken back. What a slow backend
        still has to take is, and can be released all the same.
        """
        with self._lock:
            self._mark = later(self._released, earlier(self._mark, at))

    def release(self, upto: Positions) -> bool:
        """Give the backends what is held up to these positions, each once, in any thread.

        Returns:
            Whether they have it all; False: one is slow, so call it again later.

        Raises:
            CycleError: so much is not collected, or was taken back; or it is closed.
            OutputError: a backend has failed. What it has not taken is held, and can be released again.
        """
        with self._releasing:
            self._grant(upto)
            done = [self._release_serial(upto[0]), self._release_packets(upto[1])]
            return all(done)

    def release_packets(self, upto: Positions) -> bool:
        """As `release`, but only packets, and only if no other release is under way: it waits for nothing."""
        if not self._releasing.acquire(blocking=False):
            return False
        try:
            self._grant(upto)
            return self._release_packets(upto[1])
        finally:
            self._releasing.release()

    def pass_on(self) -> bool:
        """Collect and release all, of a VM whose output is not held. Returns, raises: as `release`."""
        self.collect()
        return self.release(self._mark)

    def close(self) -> None:
        """Drop what is held, and close the backends. Idempotent."""
        with self._releasing, self._lock:
            self._open = False
            self._bytes.clear()
            self._packets.clear()
            for backend in (self.serial, self.net):
                if backend:
                    backend.close()
            self.serial = self.net = None

    # -- under the lock ---------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._open:
            raise CycleError("the outbox is closed")

    def _take(self) -> None:
        native = self.vm.native
        while n := lib.kg_take_serial(native, self._text, _CHUNK):
            self._bytes += ffi.buffer(self._text, n)
        while n := lib.kg_take_packets(native, self._data, self._lengths, _TOGETHER):
            at = 0
            for length in ffi.unpack(self._lengths, n):
                self._packets.append(bytes(ffi.buffer(self._data + at, length)))
                at += length

    def _end(self) -> Positions:
        return self._released[0] + len(self._bytes), self._released[1] + len(self._packets)

    def _advance(self, serial: int, packets: int) -> None:
        self._released = self._released[0] + serial, self._released[1] + packets
        self._mark = later(self._mark, self._released)
        self._hold(-serial, -packets)

    def _hold(self, serial: int, packets: int) -> None:
        """The VM's devices count what is held here."""
        if self.vm.is_open:
            lib.kg_hold(self.vm.native, serial, packets)

    def _grant(self, upto: Positions) -> None:
        with self._lock:
            self._check_open()
            if not all_before(upto, later(self._mark, self._granted)):
                raise CycleError(f"no output is collected that goes from {self._mark} to {upto}")
            self._granted = later(self._granted, upto)

    # -- one thread at a time ---------------------------------------------------------------------

    def _release_serial(self, upto: int) -> bool:
        while (at := self._released[0]) < upto:
            with self._lock:
                part = bytes(self._bytes[: min(upto - at, _CHUNK)])
            with _passing_on("what the guest has printed"):
                n = self.serial.write(at, part) if self.serial else len(part)
            if not n:
                return False
            with self._lock:
                del self._bytes[:n]
                self._advance(n, 0)
        return True

    def _release_packets(self, upto: int) -> bool:
        while self._released[1] < upto:
            with _passing_on("a packet of the guest's"):
                if self.net and not self.net.send(self._packets[0]):
                    return False
            with self._lock:
                self._packets.popleft()
                self._advance(0, 1)
        return True


@contextmanager
def _passing_on(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot pass on {what}: {error.strerror}") from error
