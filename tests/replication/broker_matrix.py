"""The failure matrix with a broker: an active, a standby, and each of three servers fail at each step."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from tests.replication.broker_failures import SERVERS
from tests.replication.broker_injection import BrokerPlan
from tests.replication.faults import LEASES
from tests.replication.matrix import BY_THEMSELVES, EVERYWHERE, KILLS, PAUSES, REPLICATION, UNTIL, hooks_at
from tests.replication.relay import AFTER, BEFORE, WITHIN

ROLES = "leader", "follower", "other follower"
PROCESSES = [*KILLS.values(), *PAUSES.values()]
MATRIX = [*PROCESSES, *(f"{failure}: {role}" for failure in SERVERS for role in ROLES)]
"""The failures. A server's role is the one that it has for the records at that instant."""
COLUMNS = [*PROCESSES, *SERVERS]
"""Of the table."""
VERSIONS = "2.15", "2.9"
SEES_ELECTION = 0.15
"""How often what a server holds up lasts until the others have chosen another leader."""
ELECTION = 9.0
"""Seconds."""


@dataclass(frozen=True)
class BrokerStep:
    """A step at which something fails; see `matrix.Step`, and nats_wire.py for the event."""

    name: str
    event: str = ""
    least: int = 1
    most: int = 1
    switch: bool = False
    until: int = 0
    takeover: bool = False
    every: str = ""
    active: tuple[str, ...] = ()
    standby: tuple[str, ...] = ()


_BROKER = f"{REPLICATION}.broker"
STEPS = [
    BrokerStep("lease claimed", "claim"),
    BrokerStep("lease claimed: answer", "claim answered"),
    BrokerStep("standby asks for a link", "link", 1, 2),
    BrokerStep("greeting stored (HELLO)", "hello"),
    BrokerStep("standby greets (HELLO)", "up HELLO"),
    BrokerStep("base's part stored", "part", 1, 2),
    BrokerStep("base's record stored (END)", "end"),
    BrokerStep("base acknowledged (ACK)", "up ACK"),
    BrokerStep("successor named", "name"),
    BrokerStep("successor named: answer", "name answered"),
    BrokerStep("epoch's part stored", "part", 4, 20),
    BrokerStep("epoch's part: answer", "part answered", 4, 20),
    BrokerStep("epoch's record stored (END)", "end", 2, 12),
    BrokerStep("epoch's record: answer", "end answered", 2, 12),
    BrokerStep("record comes to the standby", "record delivered", 5, 16),
    BrokerStep("part comes to the standby", "fetch part answered", 4, 20),
    BrokerStep("epoch acknowledged (ACK)", "up ACK", 2, 12),
    BrokerStep("ACK comes to the active", "up ACK delivered", 2, 12),
    BrokerStep("lease renewed", "renew", 1, 3, every="700ms"),
    BrokerStep("lease renewed: answer", "renew answered", 1, 3, every="700ms"),
    BrokerStep("heartbeat (BEAT)", "beat", 1, 5),
    BrokerStep("switchover asked (FINAL)", "final", switch=True),
    BrokerStep("switchover answered (READY)", "up READY", switch=True),
    BrokerStep("active resigns", "resign", switch=True),
    BrokerStep("handed over (GO)", "go", switch=True),
    BrokerStep("lease claimed, switchover", "claim by standby", switch=True),
    BrokerStep("taken over (TAKEN)", "up TAKEN", switch=True),
    BrokerStep("lease claimed, failover", "claim by standby", takeover=True),
    BrokerStep("lease claimed, failover: answer", "claim by standby answered", takeover=True),
    BrokerStep("guest ended (BYE)", "bye", until=UNTIL),
    BrokerStep(
        "in the active", "", 1, 6,
        active=(
            f"{_BROKER}.head:Head._is_stored",
            f"{_BROKER}.broker_channel:BrokerChannel._commit",
            f"{_BROKER}.broker_channel:BrokerChannel._has",
            f"{_BROKER}.batch:Packer.finish",
            f"{REPLICATION}.held:HeldOutput.acknowledged",
            "kvmglue.outbox:Outbox._release_serial",
            "kvmglue.outbox:Outbox._release_packets",
        ),
    ),
    BrokerStep(
        "in the standby", "", 1, 6,
        standby=(
            f"{_BROKER}.follower_channel:FollowerChannel.take",
            f"{_BROKER}.records:Records._given",
            f"{REPLICATION}.replica:Replica.end",
            f"{REPLICATION}.replica:Replica.merge",
            f"{REPLICATION}.standby:StandbyEdge._take",
        ),
    ),
]  # fmt: skip


def failures_of(step: BrokerStep) -> list[str]:
    """Those that can come at a step; of two hosts one fails."""
    for role in ("active", "standby"):
        if getattr(step, role):
            return [KILLS[role], PAUSES[role]]
    if step.takeover:
        return [name for name in MATRIX if name not in (*KILLS.values(), PAUSES["active"])]
    return MATRIX


def plan(step: BrokerStep, failure: str, seed: int) -> BrokerPlan:
    """A trial; all that is by chance in it comes from the seed."""
    rng = random.Random(f"{step.name} {failure} {seed}")
    nth = rng.randint(step.least, step.most)
    hooks = hooks_at((step.active, step.standby), failure, nth, rng)
    what, _, role = failure.partition(": ")
    lease = rng.choice(LEASES)
    hold = rng.choice((0.0, 0.2, 0.9, 1.1, 1.7)) * lease
    if role and rng.random() < SEES_ELECTION:
        hold = ELECTION
    return BrokerPlan(
        what, None, rng.choice((BEFORE, WITHIN, AFTER)), nth,
        hold=hold,
        guest=rng.choice(BY_THEMSELVES if step.until else EVERYWHERE),
        every=step.every or rng.choice(("3ms", "10ms", "30ms", "output")),
        hooks=hooks,
        switch=step.switch,
        until=step.until,
        event=step.event,
        role=ROLES.index(role) if role else 0,
        at=(rng.randrange(3), rng.randrange(3)),
        takeover=step.takeover,
        lease=lease,
    )  # fmt: skip


def table(counts: Counter[tuple[str, str]]) -> str:
    """Numbers of injections, by step and failure, as Markdown: of a server the leader's, then the others'."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for step in STEPS:
        cells = []
        for column in COLUMNS:
            names = [f"{column}: {role}" for role in ROLES] if column in SERVERS else [column]
            found = [counts[step.name, name] for name in names]
            cells.append(", ".join(map(str, found)) if any(found) else "")
        lines.append(f"| {step.name} | {' | '.join(cells)} |")
    return "\n".join(lines)
