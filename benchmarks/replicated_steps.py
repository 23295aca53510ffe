"""What each step of a replicated epoch takes of a processor.

    python -m benchmarks.replicated_steps

Both ends' work in one thread, without the link: a guest changes a structure over some pages; a window, its
image, frames, and at the other end the image put together, verified, merged. Times are the thread's own;
of each step the time that a fifth of the epochs did not take. It asserts nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from benchmarks.replicated_guest import ENGINE, NEVER
from checkpoint.replication import outgoing as queue
from checkpoint.replication.features import DELTAS
from checkpoint.replication.links.frames import Decoder, Encoder, Kind, Message
from checkpoint.replication.outgoing import Outgoing
from checkpoint.replication.replica import Replica
from checkpoint.replication.sink import LinkSink
from checkpoint.replication.store import Store
from checkpoint.stream import Stream
from checkpoint.targets.vm import VmTarget
from kvmglue import Order, Outbox, Vm, open_tracker, post, rings_for
from uffdtrack import GuestRam

T = TypeVar("T")
STEPS = ("window", "described", "coded", "framed", "unframed", "put together", "verified", "merged")
REST = 0.01
"""Seconds between two epochs: the guest writes all of its pages."""


class Steps:
    """The time that each step takes, epoch by epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def timed(self, step: str, work: Callable[..., T], *of: object) -> T:
        began = time.thread_time()
        found = work(*of)
        self.epochs[-1][step] = self.epochs[-1].get(step, 0.0) + time.thread_time() - began
        return found

    def of(self, step: str) -> float:
        """In milliseconds."""
        times = sorted(epoch.get(step, 0.0) for epoch in self.epochs)
        return times[len(times) // 5] * 1e3


class Ends:
    """Both ends of a link, in this thread."""

    def __init__(self, stream: Stream, target: VmTarget, outgoing: Outgoing, replica: Replica) -> None:
        self.steps = Steps()
        self._stream = stream
        self._target = target
        self._outgoing = outgoing
        self._replica = replica
        self._encoder, self._decoder = Encoder(), Decoder()
        self._decoder.feed(b"".join(self._encoder.encode(Message(Kind.HELLO))))

    def epoch(self) -> None:
        timed = self.steps.timed
        self.steps.epochs.append({})
        window = timed("window", self._target.window)
        part = timed("described", self._stream.part, window)
        timed("coded", part.write)
        for message in timed("unframed", self._decoder.feed, timed("framed", self._frames)):
            if message.kind is Kind.END:
                timed("merged", self._replica.merge, timed("verified", self._replica.end, message.meta))
                self._outgoing.acknowledge(message.meta["digest"])
            else:
                timed("put together", self._take, message)
        part.keep(last=True)

    def _frames(self) -> bytes:
        messages: list[Message] = []
        while more := self._outgoing.take():
            messages += more
        return b"".join(buffer for message in messages for buffer in self._encoder.encode(message))

    def _take(self, message: Message) -> None:
        if message.kind is Kind.BEGIN:
            self._replica.begin(message.meta)
        else:
            self._replica.part(message.meta, message.body)


@contextmanager
def ends(pages: int) -> Iterator[Ends]:
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        ram = stack.enter_context(GuestRam("64MiB", shared=False))
        vm = stack.enter_context(Vm(ram, ring_entries=rings_for(ENGINE, 1, None)))
        tracker = open_tracker(vm, ENGINE)
        tracker.activate()
        stack.callback(tracker.close)
        outgoing = Outgoing(lambda: None)
        outgoing.link(frozenset([DELTAS]))
        sink = LinkSink(outgoing, b"")
        sink.follows(lambda: None)
        target = VmTarget(vm, tracker, "check", stack.enter_context(Outbox(vm)))
        stream = Stream(target, sink, lambda: False)
        replica = stack.enter_context(Replica(Store(place / "chain", False), b""))
        post(vm, 0, Order("check", pages=pages, pace=NEVER))
        vm.resume()
        stream.prepare()
        yield Ends(stream, target, outgoing, replica)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=300)
    options = parser.parse_args()
    queue.BYTES = queue.UNACKNOWLEDGED = 1 << 32  # nobody takes what is sent until all is
    print(f"| pages | {' | '.join(STEPS)} |")
    print("|---" * (len(STEPS) + 1) + "|")
    for pages in (4, 100, 300, 1000, 3000):
        with ends(pages) as both:
            for _ in range(options.epochs):
                both.epoch()
                time.sleep(REST)
        print(f"| {pages} | " + " | ".join(f"{both.steps.of(step):.2f}" for step in STEPS) + " |", flush=True)


if __name__ == "__main__":
    main()
