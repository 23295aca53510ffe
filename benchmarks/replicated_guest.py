"""A guest of benchmarks/replication.py, in a process that does with it what `uffdtrack vm run` does.

    python -m benchmarks.replicated_guest GUEST [--replicate ADDRESS ...]

For each line on stdin it says on stdout how far it is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from checkpoint.cli.devices import Devices
from checkpoint.cli.options import Options
from checkpoint.cli.replicate import Replicate
from checkpoint.cli.replicate_options import WhereTo
from checkpoint.cli.vm import run_vm
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.links.wire import Wire
from checkpoint.targets.vm_stop import track
from kvmglue import Order, Vm, engine_for, huge_for, post, rings_for, written
from uffdtrack import GuestRam

NEVER = 1 << 62
ENGINE = engine_for()


class Watched:
    """The link of this process, and how many bytes were written to it."""

    edge: ActiveEdge | None = None
    sent = 0

    def __init__(self) -> None:
        open_link, write = Replicate.open, Wire.write

        def opened(replicate: Replicate, *how: Any) -> ActiveEdge:
            self.edge = open_link(replicate, *how)
            return self.edge

        async def counted(wire: Wire, buffers: Sequence[bytes | memoryview]) -> None:
            self.sent += sum(map(len, buffers))
            await write(wire, buffers)

        setattr(Replicate, "open", opened)  # noqa: B010
        setattr(Wire, "write", counted)  # noqa: B010


def fill(ram: GuestRam) -> None:
    """So that all of it is sent, and held by the standby."""
    part = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)
    ram.array.reshape(-1, len(part))[:] = part


def tell(vm: Vm, watched: Watched) -> None:
    for _ in sys.stdin:
        edge = watched.edge
        said = {
            "t": time.perf_counter(),
            "written": written(vm, 0),
            "sent": watched.sent,
            "acknowledged": edge.outgoing.acknowledged if edge else -1,
        }
        print(json.dumps(said), flush=True)


def harvest(vm: Vm, every: float) -> None:
    """Harvest as often as a session would, and nothing else."""
    tracker = track(vm, ENGINE)
    vm.resume()
    while True:
        time.sleep(every)
        vm.pause()
        tracker.exchange()
        vm.resume()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("guest")
    parser.add_argument("--pages", type=int, default=64)
    parser.add_argument("--ram", type=int, default=64, help="MiB")
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--track", action="store_true")
    parser.add_argument("--replicate")
    parser.add_argument("--name", default="")
    parser.add_argument("--every", type=float, default=0.01)
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--fence", default="")
    parser.add_argument("--net")
    given = parser.parse_args()
    to = None
    if given.replicate:
        to = WhereTo(given.replicate, given.name, given.keys, False, given.fence, 1.0)
    options = Options(None, given.every, None, None, ENGINE, None, None, False, b"", False)
    with ExitStack() as stack:
        ram = stack.enter_context(GuestRam(given.ram << 20, shared=False, huge=huge_for(ENGINE)))
        if given.fill:
            fill(ram)
        vm = stack.enter_context(Vm(ram, ring_entries=rings_for(ENGINE, 1, None)))
        outbox = stack.enter_context(Devices(Path(os.devnull), given.net).open(vm, False))
        post(vm, 0, Order(given.guest, pages=given.pages, pace=NEVER))
        threading.Thread(target=tell, args=(vm, Watched()), daemon=True).start()
        if given.track:
            harvest(vm, given.every)
        else:
            run_vm(vm, outbox, given.guest, options, to)


if __name__ == "__main__":
    main()
