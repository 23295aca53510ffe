"""What a standby and an active that has just linked say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoint.replication.features import FEATURES
from checkpoint.replication.protocol.machine import Epoch
from checkpoint.replication.protocol.table import StandbyState


def standby_hello(name: str, deadline: float, tip: Epoch | None) -> dict[str, Any]:
    """Args: tip: the epoch that the next one may follow."""
    return {
        "role": "standby", "name": name, "features": list(FEATURES), "deadline": deadline,
        "tip": {"epoch": tip.number, "digest": tip.digest} if tip else None,
    }  # fmt: skip


def why_refused(state: StandbyState) -> str:
    """Of an active's hello."""
    if state is StandbyState.FENCING:
        return "this standby is about to take over"
    if state is StandbyState.RUNNING:
        return "this standby runs a guest"
    return "this standby has epochs of another run"


def run_of(hello: Mapping[str, Any]) -> dict[str, Any]:
    """The run that an active is of, and its term; -1: it says none that counts."""
    term = hello.get("term", 0)
    return {"run": str(hello.get("run", "")), "term": term if isinstance(term, int) else -1}


def text_of(name: str, whole: int) -> str:
    """For people: a hello was not refused.

    Args:
        name: of the replication.
        whole: the last whole epoch, -1 for none.
    """
    return f"{name} is linked" + (f", from epoch {whole} on" if whole >= 0 else "")
