"""Injections: one at a time, with a direct link or with a broker."""

from __future__ import annotations

import random
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.replication import broker_matrix, matrix
from tests.replication.broker_injection import BrokerTrial
from tests.replication.broker_matrix import BrokerStep
from tests.replication.injection import Trial
from tests.replication.matrix import Step
from tests.replication.relayed_cluster import RelayedCluster
from tests.replication.zygote import Zygote

Cell = tuple[str, str]
"""Names of a step and a failure."""
Inject = Callable[[int, Cell], None]
"""One injection, for a seed. Raises: AssertionError: what must not be is so, or it has stalled."""


@contextmanager
def small_disk() -> Iterator[Path]:
    """A tmpfs with room for some hundred epochs."""
    with tempfile.TemporaryDirectory(prefix="uffdtrack-test-") as directory:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", directory], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "-l", directory], check=True)


def inject(zygote: Zygote, step: Step, failure: str, seed: int) -> None:
    """One injection. Raises: AssertionError: the outside has seen what it must not see, or it has stalled."""
    planned = matrix.plan(step, failure, seed)
    try:
        if failure == "disk full":
            with small_disk() as disk, Trial(zygote, planned, disk) as trial:
                trial.run()
        else:
            with Trial(zygote, planned) as trial:
                trial.run()
    except AssertionError as error:
        raise type(error)(f"seed {seed}, {step.name}, {failure}: {error}") from error


def inject_at_broker(
    zygote: Zygote, cluster: RelayedCluster, step: BrokerStep, failure: str, seed: int
) -> None:
    """One injection with a broker. Raises: as `inject`."""
    try:
        with BrokerTrial(zygote, broker_matrix.plan(step, failure, seed), cluster) as trial:
            trial.run()
    except AssertionError as error:
        where = f"seed {seed}, {step.name}, {failure}, NATS {cluster.version}"
        raise type(error)(f"{where}: {error}") from error


def by_chance(seed: int) -> tuple[Step, str]:
    rng = random.Random(seed)
    step = rng.choice(matrix.STEPS)
    return step, rng.choice(matrix.failures_of(step))


def at_broker_by_chance(seed: int) -> tuple[BrokerStep, str]:
    rng = random.Random(seed)
    step = rng.choice(broker_matrix.STEPS)
    return step, rng.choice(broker_matrix.failures_of(step))


class Direct:
    """The matrix of a direct link: its cells, and what injects them."""

    def __init__(self) -> None:
        self._steps = {step.name: step for step in matrix.STEPS}
        self.cells: list[Cell] = [(s.name, one) for s in matrix.STEPS for one in matrix.failures_of(s)]
        self.table = matrix.table

    def kind(self, seed: int, cell: Cell) -> str:
        """Injections of one kind follow each other."""
        return ""

    @contextmanager
    def injecting(self, zygote: Zygote, kind: str) -> Iterator[Inject]:
        yield lambda seed, cell: inject(zygote, self._steps[cell[0]], cell[1], seed)


class AtBroker:
    """The matrix with a broker. A kind is a version of the server; one cluster is for all of a kind."""

    def __init__(self) -> None:
        steps = broker_matrix.STEPS
        self._steps = {step.name: step for step in steps}
        self.cells: list[Cell] = [(s.name, one) for s in steps for one in broker_matrix.failures_of(s)]
        self.table = broker_matrix.table

    def kind(self, seed: int, cell: Cell) -> str:
        return broker_matrix.VERSIONS[(seed + zlib.crc32(repr(cell).encode())) % 2]

    @contextmanager
    def injecting(self, zygote: Zygote, kind: str) -> Iterator[Inject]:
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uffdtrack-test-")))
            cluster = stack.enter_context(RelayedCluster(kind, place))
            yield lambda seed, cell: inject_at_broker(zygote, cluster, self._steps[cell[0]], cell[1], seed)
