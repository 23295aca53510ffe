"""How a vCPU process joins a tracker: messages and fds over a socket that has the RAM's name."""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import threading
import weakref
from contextlib import suppress
from typing import Any, Protocol

from uffdtrack._sys import check_own, lib
from uffdtrack.errors import InvalidInputError, PermissionDeniedError, UffdtrackError
from uffdtrack.ram import GuestRam

JOIN_TIMEOUT = 10.0
WISH_TIMEOUT = 1.0
MESSAGE = 65536
RUBBISH = (LookupError, ValueError, TypeError, OverflowError, AttributeError)
"""What a message raises that does not follow the protocol."""


def address_of(name: str) -> str:
    """The abstract socket (unix(7)) of the tracker of a RAM."""
    return f"\0uffdtrack/{name}"


def check_peer(connection: socket.socket) -> int:
    """The process at the other end, which has to belong to the same user, or to root.

    Raises:
        PermissionDeniedError: another user's.
    """
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", peer)
    if uid not in (os.geteuid(), 0):
        raise PermissionDeniedError(f"process {pid} is of another user ({uid})")
    return int(pid)


def send(connection: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    socket.send_fds(connection, [json.dumps(message).encode()], fds or [])


def receive(connection: socket.socket, max_fds: int = 0) -> tuple[dict[str, Any], list[int]]:
    """One message; EOFError: the other end has gone."""
    data, fds, _, _ = socket.recv_fds(connection, MESSAGE, max_fds)
    if not data:
        raise EOFError
    return json.loads(data), fds


def own_uffd(engine: int, ram: GuestRam) -> int:
    """A userfaultfd of this process that traps writes to the RAM."""
    uffd = check_own(lib.ut_own_uffd(engine), "make a userfaultfd")
    try:
        check_own(lib.ut_arm(uffd, ram.address, ram.size), "write-protect the RAM")
    except BaseException:
        os.close(uffd)
        raise
    return uffd


class Forkable(Protocol):
    """Has file descriptors whose last copy means something to other processes."""

    def forked(self) -> None: ...


_forkable: weakref.WeakSet[Any] = weakref.WeakSet()


def after_fork(holder: Forkable) -> None:
    """Call `forked()` in children that this process forks: they get copies of every fd."""
    _forkable.add(holder)


def _in_child() -> None:
    for holder in list(_forkable):
        holder.forked()
    _forkable.clear()


os.register_at_fork(after_in_child=_in_child)


class Host(Protocol):
    """The tracker, as the listener sees it."""

    def offer(self, vcpu: int) -> tuple[dict[str, Any], int]: ...
    def take_in(self, vcpu: int, pid: int, tid: int, base: int, fds: list[int]) -> None: ...
    def part(self, vcpu: int, died: bool) -> None: ...


class Listener:
    """Lets processes join and leave, in a thread of its own, which sleeps otherwise."""

    def __init__(self, name: str, host: Host) -> None:
        self._host = host
        self._connections: dict[int, socket.socket] = {}
        self._joining: socket.socket | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.bind(address_of(name))
        except OSError as error:
            self._socket.close()
            raise InvalidInputError("another tracker is active on this RAM") from error
        self._socket.listen()
        self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The processes that have joined see that the tracker has gone."""
        self._wake[0].close()
        self._thread.join()
        self._wake[1].close()

    def forked(self) -> None:
        """In a forked child: other processes wait for our end, and its copies must not keep them waiting."""
        for connection in (self._socket, *self._wake, self._joining, *self._connections.values()):
            if connection:
                connection.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as waiting, self._socket as listener:
            waiting.register(listener, selectors.EVENT_READ)
            waiting.register(self._wake[1], selectors.EVENT_READ)
            while True:
                for key, _ in waiting.select():
                    if key.fileobj is self._wake[1]:
                        for connection in self._connections.values():
                            connection.close()
                        return
                    if key.fileobj is listener:
                        self._joining, _ = listener.accept()
                        vcpu = self._admit(self._joining)
                        if vcpu is not None:
                            self._forget(waiting, vcpu)
                            self._connections[vcpu] = self._joining
                            waiting.register(self._joining, selectors.EVENT_READ, (vcpu, self._joining))
                    else:
                        waiting.unregister(key.fileobj)
                        self._part(*key.data)

    def _admit(self, connection: socket.socket) -> int | None:
        """Let one process join: its request, our offer, its fds, our consent."""
        fds: list[int] = []
        try:
            pid = check_peer(connection)
            connection.settimeout(WISH_TIMEOUT)  # the others wait meanwhile
            wish, _ = receive(connection)
            connection.settimeout(JOIN_TIMEOUT)
            vcpu = int(wish["vcpu"])
            message, lists = self._host.offer(vcpu)
            send(connection, message, [lists])
            answer, fds = receive(connection, 5)
            self._host.take_in(vcpu, pid, int(wish["tid"]), int(answer["base"]), fds)
            send(connection, {})
        except (UffdtrackError, OSError, EOFError, *RUBBISH) as error:
            for fd in fds:
                os.close(fd)
            with suppress(OSError):
                send(connection, {"error": str(error)})
            connection.close()
            return None
        return vcpu

    def _forget(self, waiting: selectors.BaseSelector, vcpu: int) -> None:
        """Another process has taken the place: its last vCPU was buried, though that process may live."""
        old = self._connections.pop(vcpu, None)
        if old:
            with suppress(KeyError, ValueError):
                waiting.unregister(old)
            old.close()

    def _part(self, vcpu: int, connection: socket.socket) -> None:
        if self._connections.get(vcpu) is connection:
            del self._connections[vcpu]
        left = False
        with suppress(OSError, EOFError, *RUBBISH):
            left = bool(receive(connection)[0].get("leave"))
        self._host.part(vcpu, died=not left)
        if left:
            with suppress(OSError):
                send(connection, {})
        connection.close()
