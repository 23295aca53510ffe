"""What a link between two processes carries, on one host.

    python -m benchmarks.link -o DIR

Over a Unix socket, TCP and TLS on loopback: 1 GiB in parts of 1 MiB; epochs of 400 KB, each acknowledged
before the next is sent; the same 500 times a second; and the round trip of a message without a body.
Processor time is that of both ends, in processors. Every run is a line of link.jsonl. It asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from checkpoint.errors import LinkError
from checkpoint.replication.links.address import parse
from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.links.frames import MAX_BODY, Kind, Message
from checkpoint.replication.links.keys import make_pair
from checkpoint.replication.links.link import connect, listen
from checkpoint.replication.links.socket_channel import SocketChannel

Row = dict[str, object]
EPOCH = 400_000
DIGEST = "0" * 64


async def stand_by(directory: Path, address: str, told: Callable[[str], None]) -> None:
    """Acknowledge each epoch and each BEAT, with the processor time that was used."""
    ended = asyncio.Event()

    async def accept(channel: SocketChannel) -> None:
        await channel.receive()
        await channel.send(Message(Kind.HELLO, {"role": "standby"}))
        try:
            while (message := await channel.receive()).kind is not Kind.BYE:
                if message.kind in (Kind.END, Kind.BEAT):
                    await channel.send(Message(Kind.ACK, {"used": time.process_time()}))
        except LinkError as error:
            print(error)
        ended.set()

    listener = await listen(parse(address), Credentials.load(directory, "standby"), accept)
    told(str(listener.address))
    await ended.wait()
    await listener.close()


def run_standby(directory: Path, address: str, told: Connection) -> None:
    asyncio.run(stand_by(directory, address, told.send))


class Active:
    def __init__(self, channel: SocketChannel) -> None:
        self._channel = channel
        self._body = memoryview(os.urandom(MAX_BODY))
        self._used = 0.0

    async def send(self, size: int) -> None:
        """One epoch, until it is acknowledged."""
        begin = Message(Kind.BEGIN, {"epoch": 1, "base": False, "parent": DIGEST})
        parts = [
            Message(Kind.PART, {"offset": at, "zstd": False}, self._body[: min(MAX_BODY, size - at)])
            for at in range(0, size, MAX_BODY)
        ]
        end = Message(Kind.END, {"epoch": 1, "size": size, "digest": DIGEST})
        if len(parts) == 1:
            await self._channel.send(begin, *parts, end)
        else:
            for message in (begin, *parts, end):
                await self._channel.send(message)
        await self._acknowledged()

    async def beat(self, size: int) -> None:
        await self._channel.send(Message(Kind.BEAT, {"taken": 1}))
        await self._acknowledged()

    async def _acknowledged(self) -> None:
        message = await self._channel.receive()
        self._used = float(message.meta["used"])

    async def series(
        self, call: Callable[[int], Awaitable[None]], size: int, n: int, every: float = 0.0
    ) -> Row:
        """Call n times, at an interval of some seconds or one after the other."""
        await call(size)
        took: list[float] = []
        used, theirs, began = time.process_time(), self._used, time.perf_counter()
        for number in range(n):
            wait = began + number * every - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            start = time.perf_counter()
            await call(size)
            took.append(time.perf_counter() - start)
        whole = time.perf_counter() - began
        return {
            "per_s": n / whole,
            "mib_per_s": size * n / whole / 2**20,
            "p50_us": float(np.percentile(took, 50)) * 1e6,
            "p99_us": float(np.percentile(took, 99)) * 1e6,
            "processors": (time.process_time() - used + self._used - theirs) / whole,
        }


async def measure(address: str, directory: Path) -> list[Row]:
    channel = await connect(parse(address), Credentials.load(directory, "active"))
    await channel.send(Message(Kind.HELLO, {"role": "active"}))
    await channel.receive()
    active = Active(channel)
    rows = [
        {"what": "1 GiB", **await active.series(active.send, 1 << 30, 1)},
        {"what": "epochs of 400 KB", **await active.series(active.send, EPOCH, 2000)},
        {"what": "epochs of 400 KB, 500 a second", **await active.series(active.send, EPOCH, 2000, 1 / 500)},
        {"what": "round trip", **await active.series(active.beat, 0, 5000)},
    ]
    await channel.send(Message(Kind.BYE))
    await channel.close()
    return rows


def run(directory: Path, address: str) -> list[Row]:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=run_standby, args=(directory, address, theirs))
    process.start()
    rows = asyncio.run(measure(ours.recv(), directory))
    process.join()
    return [{"link": address.partition(":")[0], **row} for row in rows]


MEASURES = ("per_s", "mib_per_s", "p50_us", "p99_us", "processors")


def table(rows: list[Row]) -> str:
    """Medians of the rounds."""
    lines = ["| link | what | a second | MiB/s | p50 us | p99 us | processors |", "|---|---|" + "---|" * 5]
    for link, what in dict.fromkeys((row["link"], row["what"]) for row in rows):
        those = [row for row in rows if (row["link"], row["what"]) == (link, what)]
        middle = [float(np.median([row[name] for row in those])) for name in MEASURES]
        cells = (f"{n:.2g}" if n < 10 else f"{n:.0f}" for n in middle)
        lines.append(f"| {link} | {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        make_pair(Path(directory))
        for _ in range(options.rounds):
            for address in (f"unix:{directory}/socket", "tcp://127.0.0.1:0", "tls://127.0.0.1:0"):
                for row in run(Path(directory), address):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    (options.output / "link.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (options.output / "link.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
