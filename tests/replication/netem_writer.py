"""Writes a memory at random, and sends its epochs to a standby. Its words: SEED ADDRESS KEYS LOCK.

It needs neither KVM nor traps, so that old kernels will do. What it prints, a line each:

    sent NUMBER DIGEST HASH     an epoch is on its way, that has this memory
    acknowledged NUMBER DIGEST  it was
"""

from __future__ import annotations

import hashlib
import secrets
import sys
import time
from pathlib import Path

from checkpoint.errors import StandbyAwayError
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.fence import FileLock
from checkpoint.replication.links.address import parse
from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.route import DirectRoute
from checkpoint.sink import make_safe
from tests.unit.histories import PAGES, Memory, Target, epoch_of
from uffdtrack import PAGE

DEADLINE = 2.0
"""Seconds. This is for hosts that are emulated."""
AGAIN = 0.01
"""Seconds between two attempts while there is no standby."""


def hash_of(memory: Memory) -> str:
    """Of all pages; one that was never written has zeros."""
    found = hashlib.sha256()
    for page in range(PAGES):
        found.update(memory.get(page, bytes(PAGE)))
    return found.hexdigest()


def take(edge: ActiveEdge, target: Target) -> None:
    """One epoch. Raises: StandbyAwayError: what it has is pending again."""
    sink = edge.sink
    base = not sink.follows(lambda: None)
    if base:
        target.pending |= target.memory.keys()
        target.reset = set(range(PAGES))
    taken, held = target.window(), target.taken()
    try:
        draft = sink.begin(base)
        row = draft.finish(epoch_of(taken, base))
        print("sent", row.epoch, row.digest, hash_of(target.memory), flush=True)
        make_safe([draft])
    except StandbyAwayError:
        target.take_back(held)
        sink.fall_back()
        raise
    draft.committed(last=True)
    print("acknowledged", row.epoch, row.digest, flush=True)


def main() -> None:
    seed, address, keys, lock = sys.argv[1:]
    route = DirectRoute(parse(address), Credentials.load(Path(keys), "active"), False, FileLock(Path(lock)))
    about = {"name": "writer", "run": secrets.token_hex(8), "kind": "process", "keyed": False}
    target = Target(int(seed))

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with ActiveEdge(route, about, b"", DEADLINE, lambda: None, tell) as edge:
        edge.start()
        edge.await_open()
        while True:
            target.work()
            try:
                take(edge, target)
            except StandbyAwayError:
                time.sleep(AGAIN)


if __name__ == "__main__":
    main()
