"""What has to remain possible, in each state of `protocol_world.py`."""

from __future__ import annotations

from checkpoint.replication.protocol.table import ActiveState, StandbyState
from tests.unit.protocol_world import World

A, S = ActiveState, StandbyState


def takes_over(w: World) -> tuple[bool, bool]:
    """Where the active is dead and the fence can say so, a standby with a whole epoch comes to run the guest.

    Or it hears the BYE that is still on the link.
    """
    asks = w.active is None and w.standby.state in (S.FOLLOWING, S.LOST, S.FENCING)
    goal = w.standby.state is S.RUNNING or (w.over and w.standby.state is S.OVER)
    return asks and w.is_named and w.setup.fence != "none", goal


def hands_over(w: World) -> tuple[bool, bool]:
    """Where the active has resigned and lives, the standby that it resigned for comes to run the guest."""
    same = w.budget[2] == w.setup.standby_crashes
    return bool(w.active) and w.resigned and same, w.standby.state is S.RUNNING


def goes_on(w: World) -> tuple[bool, bool]:
    """Where both live and the active has an epoch left, all its output comes to be released."""
    asks = (
        w.active is not None
        and w.active.state in (A.SEEKING, A.GREETED, A.FOLLOWED)
        and w.active.lease_until > 0
        and w.standby.state in (S.EMPTY, S.FOLLOWING, S.LOST)
        and w.made < w.setup.epochs
    )
    released = w.active is not None and w.active.state is A.FOLLOWED and w.let_out == w.out > 0
    return asks, released or (w.active is not None and w.active.state is A.ENDED)


QUESTIONS = {"takes over": takes_over, "hands over": hands_over, "goes on": goes_on}
