"""Live migration of a VM to another process of this machine: pre-copy over any tracker.

Round 0 sends all of the RAM while the guest runs, each further round what was written meanwhile. When the
rest fits into the requested downtime, the guest stands, and we send the rest and the vCPUs. If the guest
dirties pages faster than the link carries them, that never happens; with a threshold the guest is paused
until the round is over, and no round leaves more than that (Lei Cao, KVM Forum 2016).
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

from checkpoint.image import split_notes
from checkpoint.precopy import Round, precopy
from checkpoint.row import Row
from checkpoint.targets.vm import VmTarget
from checkpoint.targets.vm_state import decode_vcpus, put_pages, put_vcpus, vcpu_notes
from checkpoint.targets.vm_stop import resume_full
from kvmglue import KvmTracker, Vm
from uffdtrack import PAGE, GuestRam, Memslot, Runs, UffdTracker
from uffdtrack.errors import TargetError
from uffdtrack.runs import expand, size_of

_HEAD = struct.Struct("<cQ")
_HELLO, _PAGES, _STATE, _ABORT = b"h", b"p", b"s", b"a"
_CHUNK = 256
"""How many pages a message has."""
_ZEROS = np.zeros((_CHUNK, PAGE), np.uint8)


@dataclass(frozen=True, slots=True)
class MigrationRow(Row):
    """One round: `sent` and `left` in bytes. Only the last one has `downtime_us`."""

    schema: ClassVar[str] = "uffdtrack/migration/1"

    round: int
    sent: int
    left: int
    us: int
    downtime_us: int | None = None


class MigrationError(TargetError):
    """The guest was not moved; it runs on where it was."""


class Link:
    """A stream socket with a limited rate.

    Args:
        rate: the most bytes a second; None: as fast as it goes.
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


class _Far:
    """The other end of a link, as a sink of a guest's memory."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def void(self, ranges: Runs) -> None:
        """Does nothing: a VM's memory is never void."""

    def add(self, data: Runs, zero: Runs, contents: memoryview) -> None:
        full = np.frombuffer(contents, np.uint8).reshape(-1, PAGE)
        for pages, rows in ((expand(data), full), (expand(zero), None)):
            for i in range(0, len(pages), _CHUNK):
                part = pages[i : i + _CHUNK]
                held = _ZEROS[: len(part)] if rows is None else rows[i : i + _CHUNK]
                self._link.send(_PAGES, part.data, held.data)


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
        tracker: an active one. With `max_dirty_pages` the guest is paused at so many until a round is over.
        downtime: how many seconds it may stand at the end; with `link.rate` this limits what may be left.
        max_rounds: we give up after so many.
        emit: gets each row when its round is over.

    Returns:
        A row for each round.

    Raises:
        MigrationError: it did not converge, or the other end has gone; the guest runs on here.
        StopTimeoutError: a vCPU did not stop in time; the guest runs on here.
    """
    source, rows = VmTarget(vm, tracker, ""), list[MigrationRow]()

    def note(row: MigrationRow) -> None:
        rows.append(row)
        emit(row)

    def enough(done: Round) -> bool:
        if not done.number:
            return False
        note(MigrationRow(done.number - 1, done.sent, done.left, round(done.seconds * 1e6)))
        if done.left > downtime * (link.rate or 1e9) and done.number >= max_rounds:
            raise _not_converged(max_rounds, done.left, downtime)
        return done.left <= downtime * (link.rate or 1e9)

    try:
        slots = [[slot.gfn, slot.pages] for slot in vm.ram.slots]
        link.send(_HELLO, json.dumps({"slots": slots, "vcpus": len(vm.vcpus)}).encode())
        rest = precopy(source, _Far(link), enough)
        source.postpone(*rest)
        last = _finish(source, link, len(rows))
    except BaseException as error:
        with suppress(OSError):
            link.send(_ABORT)
        vm.resume()
        resume_full(tracker)
        if isinstance(error, OSError):
            text = f"the link has failed ({error.strerror}); the guest runs on here"
            raise MigrationError(text) from error
        raise
    note(last)  # here, since whatever `emit` raises, the guest runs there
    return rows


def _not_converged(rounds: int, left: int, downtime: float) -> MigrationError:
    return MigrationError(
        f"not converged in {rounds} rounds: {left >> 20} MiB are left, more than the link carries in "
        f"{downtime * 1e3:.0f} ms; the guest runs on here. Use a tracker with a threshold (max_dirty_pages)"
    )


def _finish(source: VmTarget, link: Link, number: int) -> MigrationRow:
    """The guest stands: send the rest, and its vCPUs."""
    started = time.perf_counter()
    window = source.last_window()
    _Far(link).add(window.data, window.zero, window.contents)
    link.send(_STATE, vcpu_notes(source.states))
    kind, _ = link.receive()
    if kind != _STATE:
        raise MigrationError("the other end could not take the guest; it runs on here")
    sent = size_of(window.data) + size_of(window.zero)
    us = round((time.perf_counter() - started) * 1e6)
    return MigrationRow(number, sent, 0, us, us)


def receive(link: Link, make: Callable[[GuestRam, int], Vm]) -> tuple[GuestRam, Vm]:
    """Take a guest in; it is paused, and its source stands.

    Args:
        make: see `load_vm`.

    Raises:
        MigrationError: the source gave up.
        UnsupportedError, ImageError: this host refuses its state; the source goes on.
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
            contents = np.frombuffer(data, np.uint8, n * PAGE, 8 * n).reshape(n, PAGE)
            put_pages(vm, ram.pages(), vm.system_state, np.frombuffer(data, np.uint64, n), contents)
        put_vcpus(vm, decode_vcpus(note for _, _, note, _ in split_notes(bytes(data))), "the guest")
        link.send(_STATE)
    except BaseException:
        vm.close()
        ram.close()
        raise
    return ram, vm
