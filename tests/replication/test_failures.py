"""Failures of an active, its standby and their link: what the outside has seen, and oracles that can fail.

A selection; all of the matrix is in test_failure_matrix.py.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from checkpoint.replication.links.frames import Kind
from tests.replication.inject import small_disk
from tests.replication.injection import StallError, Trial
from tests.replication.outside import OutsideError
from tests.replication.plan import DEADLINE_OF_LINK, Plan
from tests.replication.relay import AFTER, BEFORE, WITHIN
from tests.replication.zygote import Hook, Zygote

LONG = 4 * DEADLINE_OF_LINK
REPLICA = "checkpoint.replication.replica:Replica"
RELEASES = [
    Hook(f"kvmglue.outbox:Outbox.{what}", "stop", 4) for what in ("_release_serial", "release_packets")
]
"""The first is of "count", the second of "echo": where it goes on with what it was about to release."""
SLOW_CLOSE = Hook("", "close-slowly")
RELEASED = Hook("checkpoint.replication.held:HeldOutput.acknowledged", "kill", 2, after=True)

SELECTION = [
    Plan("active killed", Kind.END, WITHIN, 6, guest="echo"),
    Plan("active killed", Kind.ACK, BEFORE, 5, guest="count to a file"),
    Plan("active lost", Kind.PART, AFTER, 6, guest="check"),
    Plan("active paused", Kind.ACK, BEFORE, 4, guest="beacon", hold=LONG),
    Plan("standby killed", Kind.BEGIN, AFTER, 4, guest="echo", every="output"),
    Plan("standby paused", Kind.END, BEFORE, 5, guest="count", hold=LONG),
    Plan("link cut", Kind.ACK, BEFORE, 6, guest="echo"),
    Plan("partition back", Kind.BEAT, AFTER, 2, guest="count", hold=LONG),
    Plan("active killed", Kind.READY, AFTER, switch=True, guest="echo"),
    Plan("link cut", Kind.GO, BEFORE, switch=True, guest="check"),
    Plan(
        "active paused", Kind.ACK, BEFORE, 5, hooks=((), [SLOW_CLOSE]), guest="echo", fence="kill -9 $ACTIVE"
    ),
    Plan("link cut", Kind.BYE, BEFORE, until=30, guest="beacon"),
    Plan("standby killed", None, hooks=((), [Hook(f"{REPLICA}.merge", "kill", 5)]), guest="echo"),
]


@pytest.mark.parametrize("plan", SELECTION, ids=lambda p: f"{p.failure}, {p.kind and p.kind.name}, {p.guest}")
def test_the_outside_sees_one_guest(zygote: Zygote, plan: Plan) -> None:
    with Trial(zygote, plan) as trial:
        trial.run()


def test_a_guest_that_does_not_stop_for_a_switchover(zygote: Zygote) -> None:
    """It goes on where it was, and another switchover is completed."""
    plan = Plan("none", Kind.GO, switch=True, hooks=([Hook("", "stop-late")], ()))
    with Trial(zygote, plan) as trial:
        trial.run()
    assert "no switchover, the guest goes on here: it is late" in trial.said


def test_frames_on_a_tap(root: None, zygote: Zygote) -> None:
    """Ethernet frames, as a bridge would carry them, of a guest that answers."""
    with Trial(zygote, Plan("active killed", Kind.ACK, BEFORE, 6, guest="echo on a TAP")) as trial:
        trial.run()


def test_disk_of_the_standby_is_full(root: None, zygote: Zygote) -> None:
    """It follows, and takes over, from memory; what is on disk is a chain up to there."""
    plan = Plan("disk full", Kind.END, BEFORE, 6, guest="echo")
    for _ in range(5):  # whether the disk is full when an epoch is written is up to the disk's writer
        with small_disk() as disk, Trial(zygote, plan, disk) as trial:
            trial.run()
        if "epochs are not stored until the next base, only in memory" in trial.said:
            return
    raise AssertionError("no standby had a full disk")


@pytest.mark.parametrize("guest", ["count", "echo"])
@pytest.mark.parametrize(
    "plan",
    [
        Plan("active lost", Kind.END, BEFORE, 6, hooks=([Hook("", "release-early")], ())),
        Plan("active killed", None, hooks=([RELEASED], [Hook("", "merge-late")]), every="500ms"),
        Plan("active paused", None, every="40ms", hold=LONG, fence="true"),
    ],
    ids=["release before acknowledge", "acknowledge before merge", "a fence that lies"],
)
def test_oracles_see_a_broken_rule(zygote: Zygote, plan: Plan, guest: str) -> None:
    if plan.fence == "true":
        plan = replace(plan, hooks=([RELEASES[guest == "echo"]], ()))
    with pytest.raises(OutsideError):
        for _ in range(5):  # what is released, or merged, at that instant is up to chance
            with Trial(zygote, replace(plan, guest=guest)) as trial, suppress(StallError):
                trial.run()
