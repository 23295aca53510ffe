"""Live migration of a VM to another process of this machine: pre-copy over any tracker.

Round 0 sends all of the RAM while the guest runs, each further round what was written meanwhile. When what is
left fits into the downtime that was asked for, the guest stands, and the rest and the vCPUs go. A guest that
dirties faster than the link carries never gets there; with a threshold it is paused until the round is over,
and no round has more than that left (Lei Cao, KVM Forum 2016).
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from checkpoint.epoch import Row
from checkpoint.targets.vm import check_same_lists, exchange_running, leave_own_gate, resume_full
from kvmglue import KvmTracker, VcpuState, Vm
from uffdtrack import PAGE, GuestRam, Memslot, UffdTracker
from uffdtrack.errors import TargetError

_HEAD = struct.Struct("<cQ")
_HELLO, _PAGES, _STATE, _ABORT = b"h", b"p", b"s", b"a"
_CHUNK = 256
"""Pages of a message."""


@dataclass(frozen=True, slots=True)
class MigrationRow(Row):
    """One round: `sent` and `left` in bytes. `downtime_us` is of the last one."""

    schema: ClassVar[str] = "uffdtrack/migration/1"

    round: int
    sent: int
    left: int
    us: int
    downtime_us: int | None = None


class MigrationError(TargetError):
    """The guest was not moved; it runs on where it was."""


class Link:
    """A stream socket that carries so many bytes a second at most.

    Args:
        rate: None: as fast as it goes.
    """

    def __init__(self, connection: socket.socket, rate: float | None = None) -> None:
        self._socket = connection
        self.rate = rate
        self._free_at = time.monotonic()

    def send(self, kind: bytes, *parts: Any) -> None:
        size = sum(memoryview(part).nbytes for part in parts)
        for part in (_HEAD.pack(kind, size), *parts):
            self._socket.sendall(part)
        if self.rate:
            self._free_at = max(self._free_at, time.monotonic()) + size / self.rate
            time.sleep(max(0.0, self._free_at - time.monotonic()))

    def receive(self) -> tuple[bytes, bytearray]:
        """Raises: MigrationError: the other end has gone."""
        kind, size = _HEAD.unpack(self._exactly(_HEAD.size))
        return kind, self._exactly(size)

    def _exactly(self, size: int) -> bytearray:
        out = bytearray(size)
        view = memoryview(out)
        while len(view):
            n = self._socket.recv_into(view)
            if not n:
                raise MigrationError("the other end of the migration has gone; the guest runs on here")
            view = view[n:]
        return out


def migrate(
    vm: Vm,
    tracker: KvmTracker | UffdTracker,
    link: Link,
    downtime: float,
    max_rounds: int = 30,
    emit: Callable[[MigrationRow], None] = lambda row: None,
) -> list[MigrationRow]:
    """Move a running guest; afterwards it stands here, for ever.

    Args:
        tracker: active. With `max_dirty_pages` the guest is paused at so many until a round is over.
        downtime: seconds in which it may stand at the end; with `link.rate` that says how much may be left.
        max_rounds: after which it has not converged.
        emit: gets each row when its round is over.

    Returns:
        A row for each round.

    Raises:
        MigrationError: it did not converge, or the other end has gone; the guest runs on here.
    """
    rate = link.rate or 1e9
    rows: list[MigrationRow] = []
    try:
        slots = [[slot.gfn, slot.pages] for slot in vm.ram.slots]
        link.send(_HELLO, json.dumps({"slots": slots, "vcpus": len(vm.vcpus)}).encode())
        tracker.exchange()
        pages = np.concatenate([np.arange(gfn, gfn + n, dtype=np.uint64) for gfn, n in slots])
        for number in range(max_rounds):
            started = time.perf_counter()
            sent = _send_pages(vm, link, pages)
            pages = exchange_running(tracker)
            left = len(pages) * PAGE
            rows.append(MigrationRow(number, sent, left, round((time.perf_counter() - started) * 1e6)))
            emit(rows[-1])
            if left <= downtime * rate:
                rows.append(_finish(vm, tracker, link, pages, number + 1))
                emit(rows[-1])
                return rows
        link.send(_ABORT)
    except BaseException as error:
        with suppress(OSError):
            link.send(_ABORT)
        vm.resume()
        resume_full(tracker)
        if isinstance(error, OSError):
            text = f"the link has failed ({error.strerror}); the guest runs on here"
            raise MigrationError(text) from error
        raise
    raise MigrationError(
        f"not converged in {max_rounds} rounds: {rows[-1].left >> 20} MiB are left, more than the link "
        f"carries in {downtime * 1e3:.0f} ms; the guest runs on here. Use a tracker with a threshold "
        "(max_dirty_pages)"
    )


def _send_pages(vm: Vm, link: Link, pages: npt.NDArray[np.uint64]) -> int:
    """Contents are read after the rearm; what changes since is in a later round."""
    sent = 0
    for i in range(0, len(pages), _CHUNK):
        part = np.ascontiguousarray(pages[i : i + _CHUNK])
        contents = vm.ram.pages()[vm.ram.index(part)]
        link.send(_PAGES, part.data, contents.data)
        sent += contents.nbytes
    return sent


def _finish(
    vm: Vm, tracker: KvmTracker | UffdTracker, link: Link, pages: npt.NDArray[np.uint64], number: int
) -> MigrationRow:
    started = time.perf_counter()
    vm.gate.close()
    pages = np.union1d(pages, leave_own_gate(vm, tracker))
    vm.pause()
    pages = np.union1d(pages, tracker.exchange().gfn)
    sent = _send_pages(vm, link, pages)
    states = [vcpu.state() for vcpu in vm.vcpus]
    text = json.dumps([{"parts": [p.hex() for p in s.parts], "msrs": s.msrs} for s in states]).encode()
    link.send(_STATE, struct.pack("<Q", len(text)), text, vm.system_state.tobytes())
    kind, _ = link.receive()
    if kind != _STATE:
        raise MigrationError("the other end could not take the guest; it runs on here")
    us = round((time.perf_counter() - started) * 1e6)
    return MigrationRow(number, sent, 0, us, us)


def receive(link: Link, make: Callable[[GuestRam, int], Vm]) -> tuple[GuestRam, Vm]:
    """Take a guest in; it is paused, and its source stands.

    Args:
        make: see `load_vm`.

    Raises:
        MigrationError: the source gave up.
        UnsupportedError, ImageError: this host does not take its state; the source goes on.
    """
    _, hello = link.receive()
    about = json.loads(hello)
    ram = GuestRam(slots=[Memslot(*slot) for slot in about["slots"]], shared=False)
    try:
        vm = make(ram, about["vcpus"])
    except BaseException:
        ram.close()
        raise
    try:
        while True:
            kind, data = link.receive()
            if kind == _ABORT:
                raise MigrationError("the source has given up: the guest runs on there")
            if kind == _STATE:
                break
            n = len(data) // (8 + PAGE)
            pages = np.frombuffer(data, np.uint64, n)
            ram.pages()[ram.index(pages)] = np.frombuffer(data, np.uint8, n * PAGE, 8 * n).reshape(n, PAGE)
        (size,) = struct.unpack_from("<Q", data)
        vm.system_state[:] = np.frombuffer(data, np.uint8, offset=8 + size)
        for vcpu, state in zip(vm.vcpus, json.loads(data[8 : 8 + size]), strict=True):
            check_same_lists(vm, vcpu, "the guest")
            parts = tuple(bytes.fromhex(part) for part in state["parts"])
            vcpu.set_state(VcpuState(parts, tuple((i, v) for i, v in state["msrs"])))
        link.send(_STATE)
    except BaseException:
        vm.close()
        ram.close()
        raise
    return ram, vm
