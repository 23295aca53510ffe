"""Orders to the guest program (_native/guest.c), and its reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmglue._sys import lib
from kvmglue.vm import Vm
from uffdtrack.errors import InvalidInputError

KINDS = {
    name: getattr(lib, f"KG_{name.upper()}")
    for name in (
        "write", "storm", "read", "fill", "sequential", "random", "hot_cold", "same", "count", "check",
        "spin", "crash", "beacon", "echo",
    )
}  # fmt: skip
_LEAST = {
    "sequential": 1, "random": 1, "hot_cold": 1, "same": 1, "count": 1, "check": 2, "beacon": 2, "echo": 3,
}  # fmt: skip
"""Kinds with a window, and how many pages that has at least."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order to one vCPU.

    Attributes:
        kind: by list: "write" once, "storm" again and again until stopped, "read", "fill" (a device of the
            host fills the pages). In the window: "sequential", "random", "hot_cold" (nine of ten writes to
            the first `hot` rows), "same" (all vCPUs count in one word), "count" (prints the numbers from 1
            on), "check" (changes a structure that tears if a page is older than another, and looks), "beacon"
            (sends a packet with each number from 1 on), "echo" (answers each packet that comes with a number,
            from 1 on, and a copy of it). "spin" does nothing, "crash" shuts the vCPU down.
        rows: the list. A row is a page of the RAM by its place in `GuestRam.pages()`.
        first, pages: the window.
        n: writes, or numbers, or operations; 0 for count, check, beacon and echo: without end.
        value: the byte that it writes to row r, at byte r modulo 4096.
        seed: for the random kinds.
        hot: see `kind`.
        pace: count, beacon: turns of an empty loop between two numbers; check: operations between two looks.
    """

    kind: str
    rows: Sequence[int] | npt.NDArray[np.uint64] = ()
    first: int = 0
    pages: int = 0
    n: int = 0
    value: int = 1
    seed: int = 1
    hot: int = 0
    pace: int = 0


def programs(name: str, vcpus: int, rows: int, until: int = 0) -> list[Order]:
    """The orders of each vCPU in a guest that runs by itself, in a part of the RAM of its own.

    Args:
        name: one of `PROGRAMS`.
        rows: of the RAM.
        until: numbers, operations or writes to do; 0: without end.

    Raises:
        InvalidInputError: no such guest, or too little RAM for it.
    """
    if name not in PROGRAMS:
        raise InvalidInputError(f"no guest {name!r}; there are {', '.join(PROGRAMS)}")
    part = rows // vcpus
    if part < 16:
        raise InvalidInputError(f"{rows} pages of RAM are too few for {vcpus} vCPUs: 16 for each")
    few = min(part, PROGRAMS[name].pages or part)
    pace, n = PROGRAMS[name].pace, until or PROGRAMS[name].n
    return [
        Order(
            name.replace("-", "_"), first=vcpu * part, pages=few, n=n, seed=vcpu + 1, hot=max(few // 10, 1),
            pace=pace,
        )
        if not (PROGRAMS[name].alone and vcpu)
        else Order("random", first=vcpu * part, pages=few, n=FOREVER, seed=vcpu + 1)
        for vcpu in range(vcpus)
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Program:
    """A guest that runs by itself.

    Attributes:
        text: what it does, for people.
        pages: the size of its window; 0: all.
        n, pace: see `Order`.
        alone: on the first vCPU; the others write at random.
    """

    text: str
    pages: int = 0
    n: int = 0
    pace: int = 0
    alone: bool = False


FOREVER = 1 << 62
PROGRAMS = {
    "count": Program(
        "prints the numbers from 1 on; other vCPUs write at random", 64, pace=100_000_000, alone=True
    ),
    "check": Program("changes a structure that tears if a page is lost, and checks it", 1024, pace=5_000_000),
    "random": Program("writes pages at random", n=FOREVER),
    "sequential": Program("writes one page after the other", n=FOREVER),
    "hot-cold": Program("nine of ten writes to a tenth of the pages", n=FOREVER),
    "beacon": Program("sends a packet with each number from 1 on", 64, pace=100_000_000, alone=True),
    "echo": Program("answers each packet with a number and a copy of it", 64, alone=True),
}
"""Guests that run by themselves."""


def post(vm: Vm, vcpu: int, order: Order) -> None:
    """Give a vCPU an order; it has to have done the last one.

    Raises:
        InvalidInputError: the order cannot be right, or the last one is not done.
    """
    mailbox, rows = vm.vcpus[vcpu].mailbox, len(vm.ram.array) // 4096
    if order.kind not in KINDS:
        raise InvalidInputError(f"no guest {order.kind!r}; there are {', '.join(KINDS)}")
    if not done(vm, vcpu):
        raise InvalidInputError(f"vCPU {vcpu} has not done its last order")
    listed = np.asarray(order.rows, np.uint64)
    if KINDS[order.kind] <= KINDS["fill"]:
        room = vm.system.rows(vcpu)
        if len(listed) > len(room):
            raise InvalidInputError(f"{len(listed)} rows: the VM was made for {len(room)} (list_rows)")
        if len(listed) and int(listed.max()) >= rows:
            raise InvalidInputError(f"row {int(listed.max())} is not in the RAM")
        room[: len(listed)] = listed
    least = _LEAST.get(order.kind)
    if least and (order.first < 0 or order.pages < least or order.first + order.pages > rows):
        raise InvalidInputError(f"rows {order.first} to {order.first + order.pages} are no window")
    mailbox.kind, mailbox.value = KINDS[order.kind], order.value & 0xFF
    mailbox.first, mailbox.pages = order.first, order.pages
    mailbox.n = len(listed) if KINDS[order.kind] <= KINDS["fill"] else order.n
    mailbox.seed, mailbox.hot, mailbox.pace = order.seed, order.hot, max(order.pace, 1)
    mailbox.stop, mailbox.written = 0, 0
    mailbox.seq = (mailbox.seq + 1) & 0xFFFFFFFF
    vm.ring_bell()


def done(vm: Vm, vcpu: int) -> bool:
    """Whether a vCPU has done its order."""
    mailbox = vm.vcpus[vcpu].mailbox
    return bool(mailbox.seq == mailbox.done)


def wait(vm: Vm, vcpu: int, timeout: float) -> bool:
    """Wait until a vCPU has done its order.

    Raises:
        GuestError: a vCPU has ended.
    """
    deadline = time.monotonic() + timeout
    while not done(vm, vcpu):
        vm.check()
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        vm.wait_event(min(left, 0.1))
    return True


def stop(vm: Vm, vcpu: int) -> None:
    """End an order that goes on and on."""
    vm.vcpus[vcpu].mailbox.stop = 1


def written(vm: Vm, vcpu: int) -> int:
    """How many writes of its order a vCPU has done so far."""
    return int(vm.vcpus[vcpu].mailbox.written)


def take_log(vm: Vm, vcpu: int) -> npt.NDArray[np.int64]:
    """The rows that a vCPU reports to have written since the last call. It must not be at work."""
    log = vm.system.log(vcpu)
    rows = np.flatnonzero(np.unpackbits(log.view(np.uint8), bitorder="little"))
    log[:] = 0
    return rows
