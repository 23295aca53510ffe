"""Each failure at each step: 100 injections a step, and 1,000 by chance."""

from __future__ import annotations

import pytest

from tests.replication.inject import by_chance, inject
from tests.replication.matrix import STEPS, Step, failures_of
from tests.replication.zygote import Zygote

EACH, BY_CHANCE, PART = 100, 1000, 50


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_each_failure_at_a_step(root: None, zygote: Zygote, step: Step) -> None:
    failures = failures_of(step)
    for seed in range(EACH):
        inject(zygote, step, failures[seed % len(failures)], seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, BY_CHANCE, PART))
def test_failures_by_chance(root: None, zygote: Zygote, first: int) -> None:
    for seed in range(first, first + PART):
        inject(zygote, *by_chance(seed), seed)
