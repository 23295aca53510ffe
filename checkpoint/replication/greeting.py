"""What a standby says to an active that has just linked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from checkpoint.replication.features import FEATURES
from checkpoint.replication.protocol.machine import Epoch
from checkpoint.replication.protocol.table import StandbyAction, StandbyState


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


def text_of(actions: Collection[StandbyAction], name: str, whole: int) -> str:
    """For people: what has come of a hello that was not refused.

    Args:
        name: of the replication.
        whole: the last whole epoch, -1 for none.
    """
    if StandbyAction.FORGET in actions:
        return f"another host has taken over {name}, and is linked; what is here is replaced by its base"
    return f"{name} is linked" + (f", from epoch {whole} on" if whole >= 0 else "")
