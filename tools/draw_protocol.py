"""Draws the protocol's table (checkpoint/replication/protocol/table.py) into docs/fault-tolerance.md:

.venv/bin/python tools/draw_protocol.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoint.replication.protocol.peer import Active, Standby
from checkpoint.replication.protocol.table import ACTIVE, STANDBY, ActiveState, Row, StandbyState

PAGE = Path(__file__).parent.parent / "docs" / "fault-tolerance.md"
ROLES: dict[str, tuple[Any, Any, Any]] = {
    "active": (Active, ActiveState, ACTIVE),
    "standby": (Standby, StandbyState, STANDBY),
}


def label(row: Row[Any, Any, Any]) -> str:
    """An event, [its guard], and what is done."""
    done = ", ".join(action.name for action in row.actions)
    return row.event.name + (f" [{row.guard}]" if row.guard else "") + (f" / {done}" if done else "")


def picture(states: Any, rows: tuple[Row[Any, Any, Any], ...]) -> Iterator[str]:
    """A mermaid block: arrows are changes of the state; in a state stands what is done without one."""
    yield from ("```mermaid", "stateDiagram-v2", f"    [*] --> {rows[0].state.name}")
    for state in states:
        yield f"    {state.name} : {state.name}"
        stays = [row for row in rows if row.state is row.next is state and row.actions]
        yield from (f"    {state.name} : {label(row)}" for row in stays)
    for state in states:
        for following in states:
            labels = [label(row) for row in rows if row[0] is state and row.next is following]
            if labels and following is not state:
                yield f"    {state.name} --> {following.name} : {'<br>'.join(labels)}"
        if not any(row.state is state and (row.next is not state or row.actions) for row in rows):
            yield f"    {state.name} --> [*]"
    yield "```"


def drawn(role: str) -> str:
    """What stands between the marks of a role: its picture, what its states are, and its guards."""
    machine, states, rows = ROLES[role]
    guards = {row.guard: getattr(machine, f"is_{row.guard}").__doc__ for row in rows if row.guard}
    table = ["", "| state, [guard] | |", "|---|---|"]
    table += [f"| `{state.name}` | {state.value} |" for state in states]
    table += [f"| [{name}] | {says[0].lower()}{says[1:-1]} |" for name, says in guards.items()]
    return "\n".join([*picture(states, rows), *table])


def redrawn(text: str) -> str:
    """The page with what the table says today."""
    for role in ROLES:
        marks = f"<!-- {role}: drawn from the table -->", f"<!-- {role}: end -->"
        text, n = re.subn(
            f"(?s){re.escape(marks[0])}.*{re.escape(marks[1])}",
            lambda _, role=role, marks=marks: f"{marks[0]}\n{drawn(role)}\n{marks[1]}",  # type: ignore[misc]
            text,
        )
        if n != 1:
            raise SystemExit(f"{PAGE} has the marks of the {role} {n} times")
    return text


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text()))
