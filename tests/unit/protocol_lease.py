"""What can happen to the lease in a world of `protocol_world.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import inf

from checkpoint.replication.protocol.table import ActiveEvent
from tests.unit.protocol_world import World


def of_the_lease(w: World) -> Iterator[tuple[str, Callable[[World], None]]]:
    if w.renewal is not None:
        yield "the server renews the lease", _renew
    elif w.active and w.active.may_release and w.active.lease_until < w.setup.lease:
        yield "the active asks for its lease", _ask_for_lease
    if w.active and w.active.may_release and w.active.lease_until <= 0:
        yield "the active looks at its clock", partial(World.tell_active, event=ActiveEvent.SILENT)
    if w.setup.heir and w.budget[0] and w.active_open and w.up and w.up[0][0] == "ACK":
        yield "the successor is named, and the heir does not hear of it", _name
    if w.holder == "A" and not w.observed:
        yield "the standby sees the lease renewed", _observe
    for ticks in (1, 2):
        if ticks == 1 or not w.hasty:
            yield f"a tick, and {ticks} of the standby's", partial(_tick, ticks=ticks)


def _ask_for_lease(w: World) -> None:
    w.renewal = 0


def _renew(w: World) -> None:
    """The server takes a renewal only if nobody else has written the lease since.

    The active hears at once that it did. Where it hears later, its lease ends when it would have ended now.
    """
    assert w.renewal is not None
    if w.holder == "A":
        w.observed = False
        if w.active:
            w.active.renewed(max(w.active.lease_until, w.setup.lease - w.renewal))
    else:
        w.tell_active(ActiveEvent.FENCE_LOST)
    w.renewal = None


def _name(w: World) -> None:
    w.spend(0)
    w.is_named, w.cut, w.up, w.down = True, True, (), ()


def _observe(w: World) -> None:
    w.observed, w.waited = True, 0


def _tick(w: World, ticks: int) -> None:
    """Clocks go at different rates, but never at more than 3 : 2."""
    w.hasty = ticks == 2
    if w.active and w.active.lease_until != inf:
        w.active.lease_until = max(0, w.active.lease_until - 1)
    if w.renewal is not None:
        w.renewal = min(w.renewal + 1, w.setup.lease)
    if w.observed:
        w.waited = min(w.waited + ticks, w.setup.patience)
