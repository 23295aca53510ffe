"""A process that is a vCPU of a tracker in another one."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from uffdtrack._sys import check_own, ffi, lib
from uffdtrack.errors import InvalidInputError, TrackerError
from uffdtrack.joining import (
    JOIN_TIMEOUT,
    address_of,
    after_fork,
    check_peer,
    own_uffd,
    receive,
    send,
)
from uffdtrack.memslots import Memslot
from uffdtrack.ram import GuestRam
from uffdtrack.vcpus import open_perf


class Vcpu:
    """This process, as a vCPU of a tracker in another one. `join()` makes it; a context manager.

    The thread that joins is the vCPU. A pause stops it wherever it is, by a signal (SIGRTMAX-2), so it must
    not block that signal.

    Attributes:
        ram: the RAM; its `array` is where to write.
        number: of the vCPU.
    """

    def __init__(self, name: str, number: int) -> None:
        self.number = number
        self.ram: GuestRam
        self._member = -1
        self._fds: list[int] = []
        self._shared: Any = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(JOIN_TIMEOUT)
        try:
            self._join(name)
        except BaseException:
            self._release()
            raise

    def _join(self, name: str) -> None:
        try:
            self._socket.connect(address_of(name))
        except OSError as error:
            raise InvalidInputError(
                f"no tracker is active on guest RAM {name!r}: {error.strerror}"
            ) from error
        check_peer(self._socket)
        tid = threading.get_native_id()
        send(self._socket, {"vcpu": self.number, "tid": tid})
        offer, fds = self._answer(1)
        self._fds += fds
        out = ffi.new("ut_shared **")
        check_own(lib.ut_shared_map(fds[0], out), "map the dirty lists")
        self._shared = out[0]
        self.ram = GuestRam.attach(name, [Memslot(*slot) for slot in offer["slots"]])
        engine = offer["engine"]
        uffd = own_uffd(engine, self.ram)
        self._fds.append(uffd)
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._fds.append(pagemap)
        perf = open_perf(engine, tid, offer["threshold"])
        self._fds += perf
        base = ffi.cast("uint8_t *", self.ram.address)
        self._member = check_own(
            lib.ut_member_open(self._shared, base, self.number + 1, uffd, self._socket.fileno()),
            "join the tracker",
        )
        if len(perf) == 3:
            lib.ut_member_perf(self._member, self.number, perf[2])
        send(self._socket, {"base": self.ram.address}, [uffd, pagemap, *perf])
        self._answer()
        after_fork(self)
        # Our copy of the userfaultfd would keep the traps when the tracker dies. inline needs it, and its
        # threads need nobody else.
        if engine != lib.UT_INLINE:
            os.close(uffd)
            self._fds.remove(uffd)

    def _answer(self, max_fds: int = 0) -> tuple[dict[str, Any], list[int]]:
        try:
            answer, fds = receive(self._socket, max_fds)
        except (EOFError, OSError) as error:
            raise TrackerError(f"the tracker has gone, or does not answer: {error}") from error
        if "error" in answer:
            raise InvalidInputError(answer["error"])
        return answer, fds

    def forked(self) -> None:
        """In a forked child: the child is no vCPU."""
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._member = -1
        self._shared = None

    def leave(self) -> None:
        """Stop being a vCPU: the tracker keeps its writes. Idempotent."""
        if self._member >= 0:
            try:
                send(self._socket, {"leave": True})
                self._answer()
            except (TrackerError, OSError):
                pass  # the tracker has gone first, and its traps with it
        self._release()

    def _release(self) -> None:
        if self._member >= 0:
            lib.ut_member_close(self._member)
            self._member = -1
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        if self._shared is not None:
            lib.ut_shared_unmap(self._shared)
            self._shared = None
        if hasattr(self, "ram"):
            self.ram.close()

    def __enter__(self) -> Vcpu:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def join(name: str, vcpu: int) -> Vcpu:
    """Make the calling thread a vCPU of the active tracker of the RAM of that name.

    Args:
        name: `GuestRam.name`, from the tracker's process.
        vcpu: 0 up to the tracker's number of vCPUs.

    Raises:
        InvalidInputError: no such RAM or tracker, or the place is taken.
        TrackerError: the tracker went away meanwhile.
        UnsupportedError, PermissionDeniedError: the engine does not work in this process.
    """
    return Vcpu(name, vcpu)
