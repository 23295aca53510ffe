"""Each failure at each step with a broker: of an active, its standby, and each server of a cluster of three.

A selection; all of the matrix is in run_matrix.py --broker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.helpers import DEADLINE
from tests.replication.broker_injection import BrokerPlan, BrokerTrial
from tests.replication.broker_matrix import STEPS, VERSIONS, BrokerStep, failures_of
from tests.replication.faults import LEASES
from tests.replication.inject import at_broker_by_chance, inject_at_broker
from tests.replication.injection import StallError
from tests.replication.outside import OutsideError
from tests.replication.relay import AFTER, BEFORE, WITHIN
from tests.replication.relayed_cluster import RelayedCluster
from tests.replication.zygote import Hook, Zygote

EACH, BY_CHANCE, PART = 6, 60, 20
"""An injection takes some seconds: run_matrix.py does more of them."""
LONG = 3 * LEASES[0]
ACKNOWLEDGED = [
    Hook(f"checkpoint.replication.{what}", "stop", 6)
    for what in ("held:HeldOutput.acknowledged", "outgoing:Outgoing.acknowledge")
]
"""The first is of "count", the second of "echo": where it goes on, and looks whether it may release."""


@pytest.fixture(scope="module")
def cluster(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayedCluster]:
    """One of the newer servers, for all injections of this file."""
    with RelayedCluster(VERSIONS[0], tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="module")
def older(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayedCluster]:
    with RelayedCluster(VERSIONS[1], tmp_path_factory.mktemp("older")) as made:
        yield made


SELECTION = [
    BrokerPlan("active killed", None, AFTER, 6, event="end answered", guest="echo"),
    BrokerPlan("server paused", None, WITHIN, 4, event="end", role=1, guest="count to a file"),
    BrokerPlan("server parted", None, BEFORE, 5, event="up ACK", role=0, guest="beacon"),
]


@pytest.mark.parametrize("plan", SELECTION, ids=lambda plan: f"{plan.failure}, {plan.event}, {plan.guest}")
def test_the_outside_sees_one_guest(zygote: Zygote, cluster: RelayedCluster, plan: BrokerPlan) -> None:
    with BrokerTrial(zygote, plan, cluster) as trial:
        trial.run()


def test_a_switchover_is_completed(zygote: Zygote, cluster: RelayedCluster) -> None:
    """The active hears that the guest runs at the standby, and ends well."""
    plan = BrokerPlan("none", None, event="up TAKEN delivered", switch=True, hold=0.0)
    with BrokerTrial(zygote, plan, cluster) as trial:
        trial.begin()
        trial.fail()
        assert trial.active and trial.active.wait(DEADLINE) == 0
        assert "the guest runs at" in trial.active.said
        trial.move()
        trial.check()


EARLY, STORED, LEASE, LEASE_OF_PACKETS = (
    BrokerPlan("active killed", None, BEFORE, 6, event="end", hooks=([Hook("", "release-early")], ())),
    BrokerPlan(
        "standby paused", None, BEFORE, 8, event="record delivered",
        hooks=([Hook("", "release-when-stored")], ()),
    ),
    *(
        BrokerPlan(
            "active paused", None, hold=LONG, every="output", hooks=([Hook("", "ignore-lease"), where], ())
        )
        for where in ACKNOWLEDGED
    ),
)  # fmt: skip
CONTROLS = pytest.mark.parametrize(
    ("plan", "guest"),
    [
        pytest.param(EARLY, "count", id="release before acknowledge"),
        pytest.param(EARLY, "echo", id="the same, packets", marks=pytest.mark.slow),
        pytest.param(STORED, "count", id="release when stored"),
        pytest.param(STORED, "echo", id="the same, packets", marks=pytest.mark.slow),
        pytest.param(LEASE, "count", id="release without the lease", marks=pytest.mark.slow),
        pytest.param(LEASE_OF_PACKETS, "echo", id="the same, packets", marks=pytest.mark.slow),
    ],
)


@CONTROLS
def test_oracles_see_a_broken_rule(
    zygote: Zygote, cluster: RelayedCluster, plan: BrokerPlan, guest: str
) -> None:
    with pytest.raises(OutsideError):
        for _ in range(6):  # what is on its way at that instant is up to chance
            with BrokerTrial(zygote, replace(plan, guest=guest), cluster) as trial, suppress(StallError):
                trial.run()


@pytest.mark.slow
@CONTROLS
def test_the_same_with_nothing_broken(
    zygote: Zygote, cluster: RelayedCluster, plan: BrokerPlan, guest: str
) -> None:
    for _ in range(3):
        hooks = [hook for hook in plan.hooks[0] if hook.where]
        with BrokerTrial(zygote, replace(plan, guest=guest, hooks=(hooks, ())), cluster) as trial:
            trial.run()


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_each_failure_at_a_step(
    zygote: Zygote, cluster: RelayedCluster, older: RelayedCluster, step: BrokerStep
) -> None:
    failures = failures_of(step)
    for seed in range(EACH):
        at = older if seed % 2 else cluster
        inject_at_broker(zygote, at, step, failures[seed % len(failures)], seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, BY_CHANCE, PART))
def test_failures_by_chance(
    zygote: Zygote, cluster: RelayedCluster, older: RelayedCluster, first: int
) -> None:
    for seed in range(first, first + PART):
        at = older if seed % 2 else cluster
        inject_at_broker(zygote, at, *at_broker_by_chance(seed), seed)
