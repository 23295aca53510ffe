"""Pre-copy migration of a guest that dirties faster than the link carries, with and without the forced pause.

Nine of ten of its writes go to a quarter of its 64 MiB; the link carries 100 MB/s.

    make bench

A line of migration.jsonl for each round of each run, and the plot. It asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from pathlib import Path

from benchmarks.plots import draw_migration
from checkpoint.migrate import Link, MigrationError, MigrationRow, migrate, receive
from kvmglue import Order, Vm, bind_vcpus, open_tracker, post, rings_for
from uffdtrack import GuestRam

RATE = 100e6
RAM = 64 << 20
RUNS = {
    "kvm-bitmap, plain": ("kvm-bitmap", None),
    "scan, plain": ("scan", None),
    "kvm-ring, paused at 1024 pages": ("kvm-ring", 1024),
    "sync, paused at 1024 pages": ("sync", 1024),
}


def standby(connection: socket.socket) -> None:
    """In a process of its own: take the guest in, and end."""
    try:
        ram, vm = receive(Link(connection), Vm)
        vm.close()
        ram.close()
    except MigrationError:
        pass


def one(engine: str, limit: int | None) -> list[MigrationRow]:
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        standby(theirs)
        os._exit(0)
    theirs.close()
    rows: list[MigrationRow] = []
    with GuestRam(RAM, shared=False) as ram:
        ram.array[::4096] = 1
        with Vm(ram, ring_entries=rings_for(engine, 1, limit)) as vm:
            tracker = open_tracker(vm, engine, max_dirty_pages=limit)
            tracker.activate()
            bind_vcpus(tracker, vm)
            vm.resume()
            post(vm, 0, Order("hot_cold", pages=RAM // 4096, hot=RAM // 4096 // 4, n=1 << 60))
            try:
                downtime = limit * 4096 / RATE if limit else 0.02
                migrate(vm, tracker, Link(ours, RATE), downtime, 15, rows.append)
            except MigrationError as error:
                print(f"{engine}: {error}")
            tracker.close()
    ours.close()
    os.waitpid(child, 0)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    runs = {name: one(*how) for name, how in RUNS.items()}
    shown = {name: [row.to_json() for row in rows] for name, rows in runs.items()}
    with (options.output / "migration.jsonl").open("w") as out:
        for name, rows in shown.items():
            out.writelines(json.dumps({"run": name, "rate": RATE, "ram": RAM, **row}) + "\n" for row in rows)
            last = runs[name][-1]
            us = last.downtime_us
            how = f"downtime {us / 1e3:.1f} ms" if us else f"not moved, {last.left >> 20} MiB left"
            print(f"{name}: {len(rows)} rounds, {how}")
    print(draw_migration(shown, RAM, options.output / "migration.png"))


if __name__ == "__main__":
    main()
