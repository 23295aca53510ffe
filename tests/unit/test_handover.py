"""A switchover whose answer comes at the last moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from checkpoint.cli.handover import Handover


@pytest.mark.parametrize("late", [False, True], ids=["no answer", "a late answer"])
def test_a_guest_that_was_given_away_does_not_run_here(late: bool) -> None:
    """The answer may come between the end of our patience and our taking the guest back."""
    ran: list[str] = []
    edge: Any = SimpleNamespace(
        asked=True, is_resigned=False, is_taken=False, stopped="", failure=None, far_name="", about={},
        why="", final=lambda: None, await_handover=lambda timeout: None,
    )  # fmt: skip
    edge.take_back = lambda: setattr(edge, "is_resigned", late)
    vm = SimpleNamespace(resume=lambda: ran.append("resume"))
    session = SimpleNamespace(take=lambda: SimpleNamespace(epoch=1))
    handover = Handover(edge, session, SimpleNamespace(vm=vm, stands=False))  # type: ignore[arg-type]
    assert handover.done() == late
    assert ran == ([] if late else ["resume"])
