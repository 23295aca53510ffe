"""The protocol of an active and its standby, in all orders of events that small bounds allow.

The search is our own (protocol_search.py), over the real machines of peer.py. `spin`,
the standard tool, checks a model in a language of its own: the table could be generated into it, but guards
and what the machines know had to be written a second time, and that copy would be checked, not what runs.
`minicheck` (PyPI) searches Python as we do, and finds shortest ways, too. But it is one author's, with one
upload (0.4.0, July 2026); its first version gave false proofs, by its own advisory; its invariants are of
states, not of steps; and it does not tell which rows were taken. What we would use of it is 40 lines, so it
is no dependency. Asked once, it counted the same states, and its ways to mistakes were as long as ours.

Each mistake of protocol_mutants.py has to be found, for its own reason; `pytest -rP -k mistake` prints the
ways.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from checkpoint.replication.protocol.machine import Machine, Told
from checkpoint.replication.protocol.peer import Active, Standby
from checkpoint.replication.protocol.table import ACTIVE, STANDBY, ActiveState
from tests.unit.protocol_mutants import MUTANTS
from tests.unit.protocol_questions import QUESTIONS
from tests.unit.protocol_search import Found, Search
from tests.unit.protocol_world import Setup

TAKEN_ROWS: set[object] = set()


class Noting(Machine):  # type: ignore[type-arg]
    """Notes the rows that are taken."""

    def _row(self, event: Any, told: Told) -> Any:
        row = super()._row(event, told)
        TAKEN_ROWS.add(row)
        return row


class NotingActive(Noting, Active):
    pass


class NotingStandby(Noting, Standby):
    pass


NOTED: dict[str, Any] = {"active": NotingActive, "standby": NotingStandby}
SETUPS = {
    "no fence": Setup("none", 2, 1, **NOTED),
    "lock": Setup("lock", 2, 2, **NOTED),
    "command": Setup("command", 2, 1, **NOTED),
    "pidfd": Setup("pidfd", 2, 1, **NOTED),
    "lease": Setup("lease", 1, 1, 0, 0, switches=0, **NOTED),
    "lease, and a switchover": Setup("lease", 1, 0, 0, 0, **NOTED),
    "a command that lies": Setup("liar", 2, 1, 1, 0, **NOTED),
    "users ask twice": Setup("lock", 2, 0, 0, 0, switches=2, **NOTED),
    "another session comes by": Setup("lock", 2, 1, 1, 0, switches=0, strangers=1, **NOTED),
    "the guest ends": Setup("pidfd", 2, 1, 1, 0, ends=True, **NOTED),
    "a process ends": Setup("lock", 2, 1, 0, 0, ends=True, holds=False, **NOTED),
    "windows while the link changes": Setup("lock", 3, 1, 0, 0, windows=1, **NOTED),
    "a standby with a disk": Setup("lock", 3, 1, 1, 1, disk=True, switches=0, **NOTED),
    "an heir": Setup("lock", 2, 1, 1, 0, heir=1, windows=1, switches=0, strangers=1, **NOTED),
    "an heir whose guest ends": Setup("pidfd", 2, 1, 1, 0, heir=1, ends=True, switches=0, **NOTED),
    "an heir, and who was cut off": Setup("pidfd", 2, 1, 1, 0, heir=1, old=True, **NOTED),
    "an heir under its lease": Setup("lease", 1, 0, 1, 0, switches=0, heir=1, old=True, **NOTED),
}
SLOW = {
    "no fence": Setup("none", 4, 1, switches=2),
    "lock": Setup("lock", 3, 2, switches=2),
    "command": Setup("command", 3, 2, 1, 2),
    "pidfd": Setup("pidfd", 3, 2, ends=True),
    "lease": Setup("lease", 2, 1, switches=0),
    "lease, and a switchover": Setup("lease", 2, 1, 1, 0),
    "a command that lies": Setup("liar", 4, 2, 1, 0, switches=2),
    "windows while the link changes": Setup("lock", 4, 1, 1, 0, windows=2),
    "a standby with a disk": Setup("lock", 4, 1, 1, 2, disk=True, switches=0),
    "an heir": Setup("lock", 3, 1, 1, 0, switches=0, heir=2, windows=1, old=True, strangers=1),
    "an heir, and who was cut off": Setup("pidfd", 3, 1, 1, 1, heir=1, old=True),
    "an heir under its lease": Setup("lease", 1, 1, 1, 0, switches=0, heir=1, strangers=1),
}
NEVER = {
    (ActiveState.GREETED, "STAND_IN"),
    (ActiveState.FOLLOWED, "STAND_IN"),
    (ActiveState.HANDING, "STAND_IN"),
}
"""What two of our own peers never come to: a standby says TAKEN as the first thing on a link, or after GO."""


def explore(name: str, setup: Setup) -> Found:
    found = Search(setup, QUESTIONS).run()
    print(f"{name}: {found.states} states, {found.steps} steps")
    assert (name, found.broken, found.trace, found.stuck) == (name, "", [], {})
    return found


def test_invariants_hold_in_every_order() -> None:
    """And every row is taken: one that nothing comes to is not needed, or the search looks at too little."""
    TAKEN_ROWS.clear()
    asked = Counter[str]()
    for name, setup in SETUPS.items():
        asked.update(explore(name, setup).asked)
    assert min(asked.values()) > 1000
    never = {row for row in (*ACTIVE, *STANDBY) if row not in TAKEN_ROWS}
    assert {(row.state, row.event.name) for row in never} == NEVER


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_invariants_hold_in_every_longer_order(name: str) -> None:
    explore(name, SLOW[name])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * one.slow) for name, one in MUTANTS.items()]
)
def test_a_mistake_is_found(name: str) -> None:
    mutant = MUTANTS[name]
    found = Search(mutant.setup, QUESTIONS).run()
    print("", f"{name}: {found.broken or f'it never {mutant.stuck}'}", sep="\n")
    print(*(found.trace or found.stuck[mutant.stuck]), sep="\n  ")
    if mutant.stuck:
        assert mutant.stuck in found.stuck and not found.broken
    else:
        assert mutant.broken in found.broken
