"""What the outside sees of a guest's network device, and what that must look like; see outside.py."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
from abc import abstractmethod
from collections.abc import Iterator

from tests.replication.outside import ACTIVE, STANDBY, Outside, OutsideError

NUMBER = struct.Struct("<Q")
AT = 14
"""Of the number in a packet (kvmglue/_native/guest.c)."""
OURS, QUESTION = 0x88B5, 0x88B6
"""Types of Ethernet frames: of the guest's packets, of our questions."""
_SO_RCVBUFFORCE = 33  # socket(7)
_PACKET_OUTGOING = 4  # packet(7)


class Packets(Outside):
    """Network devices that lead to one socket. What it gets is in the order in which it was sent."""

    def __init__(self, asks: bool) -> None:
        """Args: asks: the guest is one that answers; it is asked all the time."""
        super().__init__()
        self._socket = self._open()
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self.seen: list[tuple[int, int, bytes]] = []
        self._numbers = [0, 0]
        self._asked = 0 if asks else None
        self._slow = 1.0 if asks else None
        self.start()

    @abstractmethod
    def _open(self) -> socket.socket:
        """The socket, which does not block; sets `options`, too."""

    @abstractmethod
    def _sender(self, address: tuple[object, ...]) -> int | None:
        """Whose packet it is, by what recvfrom(2) says of it; None: nobody's."""

    @abstractmethod
    def _send(self, question: bytes) -> None:
        """To whoever is there."""

    def close(self) -> None:
        super().close()
        self._socket.close()

    def _record_all(self) -> None:
        poll = select.poll()
        for fd in (self._socket.fileno(), self._ends):
            poll.register(fd, select.POLLIN)
        while self._readable(poll) is not None:
            if self._asked is not None:
                self._ask()
            with self.changed:
                for who, data in self._received():
                    number = NUMBER.unpack_from(data, AT)[0]
                    self.seen.append((who, number, data))
                    self._numbers[who] = max(self._numbers[who], number)
                self.changed.notify_all()

    def _received(self) -> Iterator[tuple[int, bytes]]:
        while True:
            try:
                data, address = self._socket.recvfrom(2048)
            except BlockingIOError:
                return
            who = self._sender(address)
            if who is not None:
                yield who, data

    def _ask(self) -> None:
        """A question that was never asked before, so that each answer is one that nobody else could give."""
        assert self._asked is not None
        self._asked += 1
        self._send(NUMBER.pack(self._asked))

    @property
    def has_moved(self) -> bool:
        return self._numbers[STANDBY] > 0

    def count(self) -> int:
        return max(self._numbers)

    def sent_by_active(self) -> int:
        return self._numbers[ACTIVE]

    def check(self, known: int, tip: int | None) -> None:
        answers: dict[int, bytes] = {}
        moved = False
        first = 0
        for who, number, data in self.seen:
            moved |= who == STANDBY
            if who == ACTIVE and moved and not self.may_mix:
                raise OutsideError(f"the active has sent packet {number} behind the standby's first one")
            if answers.setdefault(number, data) != data:
                raise OutsideError(f"there are two packets {number}, and they differ")
            if number > len(answers):
                raise OutsideError(f"packet {number} came, and {len(answers)} before it")
            if who == STANDBY and number <= known:
                raise OutsideError(f"the standby repeats packet {number}, and knew of {known}")
            first = max(first, number) if who == ACTIVE else first
        sent = [number for who, number, _ in self.seen if who == ACTIVE]
        if len(sent) != len(set(sent)):
            raise OutsideError("the active has sent a packet twice")
        if tip is not None and tip < first:
            raise OutsideError(f"{first} packets were released, and the standby has {tip} of them")


class Datagrams(Packets):
    """Each device has a pair of UDP ports, on addresses of their own."""

    _made = 0

    def _open(self) -> socket.socket:
        Datagrams._made += 1
        network = f"127.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
        host = 1 + Datagrams._made % 80 * 3
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.bind((f"{network}.{host}", 0))
        to = "{}:{}".format(*made.getsockname())
        self._own = [(f"{network}.{host + 1 + who}", 7000) for who in (ACTIVE, STANDBY)]
        active, standby = (("--net", f"udp:{own}:{port},{to}") for own, port in self._own)
        self.options = active, standby
        return made

    def _sender(self, address: tuple[object, ...]) -> int | None:
        return self._own.index((str(address[0]), 7000))

    def _send(self, question: bytes) -> None:
        for own in self._own:
            self._socket.sendto(question, own)


class Taps(Packets):
    """Each device is a TAP interface. The guests' frames are a type of their own."""

    def _open(self) -> socket.socket:
        self._names = [f"ut{os.getpid()}{role}" for role in "as"]
        for name in self._names:
            subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        self.options = ("--net", f"tap:{self._names[0]}"), ("--net", f"tap:{self._names[1]}")
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        return socket.socket(socket.AF_PACKET, kind, socket.htons(OURS))

    def close(self) -> None:
        super().close()
        for name in self._names:
            subprocess.run(["ip", "link", "del", name], check=True)

    def _sender(self, address: tuple[object, ...]) -> int | None:
        if address[0] not in self._names or address[2] == _PACKET_OUTGOING:
            return None
        return self._names.index(str(address[0]))

    def _send(self, question: bytes) -> None:
        frame = b"\xff" * 6 + b"\x02" + bytes(5) + QUESTION.to_bytes(2, "big") + question
        for name in self._names:
            self._socket.sendto(frame, (name, 0))
