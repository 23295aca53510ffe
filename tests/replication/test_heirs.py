"""A guest that was taken over, until its next standby has it: what is outside of it, whatever fails then.

The heirs here are guests that begin: what came before does not matter. Whole chains of takeovers are in
test_after_takeover.py.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

import pytest

from checkpoint.replication.links.frames import Kind
from tests.replication.injection import DEADLINE_OF_LINK, Plan, StallError, Trial
from tests.replication.matrix import EVERYWHERE, MATRIX
from tests.replication.outside import OutsideError
from tests.replication.relay import AFTER, BEFORE, WITHIN
from tests.replication.zygote import Hook, Zygote

HEIR, LATE = ([Hook("", "heir")], ()), ([Hook("", "hold-late")], ())
LONG = 1.7 * DEADLINE_OF_LINK
WHOLE = Plan("answers lost", Kind.END, AFTER, hold=LONG, hooks=HEIR)
"""The standby has the first epoch, and may take over from it; the heir hears nothing of it."""
SELECTION = [
    WHOLE,
    replace(WHOLE, guest="echo"),
    Plan("standby killed", Kind.HELLO, BEFORE, guest="beacon", until=30, hooks=HEIR),
]
BASE = [
    (kind, when)
    for kind in (Kind.HELLO, Kind.BEGIN, Kind.PART, Kind.END, Kind.ACK)
    for when in (BEFORE, WITHIN, AFTER)
]


@pytest.mark.parametrize("plan", SELECTION, ids=lambda p: f"{p.failure}, {p.kind.name}, {p.guest}")
def test_the_outside_sees_one_guest(zygote: Zygote, plan: Plan) -> None:
    with Trial(zygote, plan) as trial:
        trial.run()


@pytest.mark.slow
@pytest.mark.parametrize("failure", [*(name for name in MATRIX if name != "disk full"), "answers lost"])
def test_each_failure_while_the_first_epoch_is_under_way(zygote: Zygote, failure: str) -> None:
    chance = random.Random(failure)
    for kind, when in BASE:
        plan = Plan(
            failure, kind, when, hold=chance.choice((0.2, 0.6, 1.1, 1.7)) * DEADLINE_OF_LINK,
            guest=chance.choice(EVERYWHERE), every=chance.choice(("1ms", "10ms", "output")), hooks=HEIR,
        )  # fmt: skip
        with Trial(zygote, plan) as trial:
            trial.run()


@pytest.mark.parametrize("guest", ["count", pytest.param("echo", marks=pytest.mark.slow)])
def test_oracles_see_one_that_holds_late(zygote: Zygote, guest: str) -> None:
    with pytest.raises(OutsideError):
        for _ in range(5):
            with Trial(zygote, replace(WHOLE, guest=guest, hooks=LATE)) as trial, suppress(StallError):
                trial.run()
