"""The failure matrix: each failure at each step."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from checkpoint.replication.links.frames import Kind
from tests.replication.failures import FAILURES
from tests.replication.plan import DEADLINE_OF_LINK, GUESTS, Plan
from tests.replication.relay import AFTER, BEFORE, WITHIN
from tests.replication.zygote import Hook

UNTIL = 40
EVERYWHERE = [name for name in GUESTS if "TAP" not in name]
BY_THEMSELVES = [name for name in EVERYWHERE if name != "check"]
"""They end by themselves."""


@dataclass(frozen=True)
class Step:
    """A step at which something fails.

    Attributes:
        name: for the table.
        kind, least, most: of a message, and which one of its kind, by chance.
        hooks: of the active, and of the standby: places in them.
    """

    name: str
    kind: Kind | None = None
    least: int = 1
    most: int = 1
    switch: bool = False
    until: int = 0
    active: tuple[str, ...] = ()
    standby: tuple[str, ...] = ()


REPLICATION = "checkpoint.replication"
STEPS = [
    Step("greeting (HELLO)", Kind.HELLO, 1, 2),
    Step("base begins (BEGIN)", Kind.BEGIN),
    Step("base under way (PART)", Kind.PART),
    Step("base whole (END)", Kind.END),
    Step("base acknowledged (ACK)", Kind.ACK),
    Step("epoch begins (BEGIN)", Kind.BEGIN, 2, 12),
    Step("epoch under way (PART)", Kind.PART, 2, 12),
    Step("epoch whole (END)", Kind.END, 2, 12),
    Step("epoch acknowledged (ACK)", Kind.ACK, 2, 12),
    Step("heartbeat (BEAT)", Kind.BEAT, 1, 5),
    Step("switchover asked (FINAL)", Kind.FINAL, switch=True),
    Step("switchover answered (READY)", Kind.READY, switch=True),
    Step("handed over (GO)", Kind.GO, switch=True),
    Step("taken over (TAKEN)", Kind.TAKEN, switch=True),
    Step("guest ended (BYE)", Kind.BYE, until=UNTIL),
    Step(
        "in the active", None, 1, 12,
        active=(
            "checkpoint.targets.vm:VmTarget.window",
            f"{REPLICATION}.sink:LinkDraft.finish",
            f"{REPLICATION}.active_link:ActiveLink._ended",
            f"{REPLICATION}.outgoing:Outgoing.acknowledge",
            f"{REPLICATION}.held:HeldOutput.acknowledged",
            f"{REPLICATION}.held:HeldOutput.packets_acknowledged",
            "kvmglue.outbox:Outbox._release_serial",
            "kvmglue.outbox:Outbox._release_packets",
        ),
    ),
    Step(
        "in the standby", None, 1, 12,
        standby=(
            f"{REPLICATION}.replica:Replica.part",
            f"{REPLICATION}.replica:Replica.end",
            f"{REPLICATION}.replica:Replica.merge",
            f"{REPLICATION}.mirror:Mirror._write",
            f"{REPLICATION}.standby:StandbyEdge._take",
            f"{REPLICATION}.store:Store._write_group",
            f"{REPLICATION}.store:Store._name",
        ),
    ),
]  # fmt: skip
NAMES = [step.name for step in STEPS]
KILLS = {"active": "active killed", "standby": "standby killed"}
PAUSES = {"active": "active paused", "standby": "standby paused"}
MATRIX = [name for name in FAILURES if name not in ("none", "answers lost")]
"""The failures, as the columns of the table."""


def failures_of(step: Step) -> list[str]:
    """Those that can come at a step."""
    for role in ("active", "standby"):
        if getattr(step, role):
            return [KILLS[role], PAUSES[role]]
    return MATRIX


def hooks_at(
    places: tuple[Sequence[str], Sequence[str]], failure: str, nth: int, rng: random.Random
) -> tuple[list[Hook], list[Hook]]:
    """Of the active and of the standby, at one of the places that each has: it fails at the nth call."""
    do = "kill" if "killed" in failure else "stop"

    def at(several: Sequence[str]) -> list[Hook]:
        return [Hook(rng.choice(several), do, nth, after=rng.random() < 0.5)] if several else []

    return at(places[0]), at(places[1])


def plan(step: Step, failure: str, seed: int) -> Plan:
    """A trial; all that is by chance in it comes from the seed."""
    rng = random.Random(f"{step.name} {failure} {seed}")
    nth = rng.randint(step.least, step.most)
    hooks = hooks_at((step.active, step.standby), failure, nth, rng)
    return Plan(
        failure, step.kind, rng.choice((BEFORE, WITHIN, AFTER)), nth,
        hold=rng.choice((0.0, 0.2, 0.9, 1.1, 1.7)) * DEADLINE_OF_LINK,
        guest=rng.choice(BY_THEMSELVES if step.until else EVERYWHERE),
        every=rng.choice(("1ms", "3ms", "10ms", "output")),
        hooks=hooks,
        switch=step.switch,
        until=step.until,
    )  # fmt: skip


def table(counts: Counter[tuple[str, str]]) -> str:
    """Numbers of injections, by step and failure, as Markdown."""
    lines = [f"| | {' | '.join(MATRIX)} |", "|---" * (len(MATRIX) + 1) + "|"]
    for step in STEPS:
        cells = (str(counts[step.name, failure] or "") for failure in MATRIX)
        lines.append(f"| {step.name} | {' | '.join(cells)} |")
    return "\n".join(lines)
