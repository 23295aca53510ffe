"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest

from checkpoint import last_copies
from checkpoint.room import Room


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places for copies are used again and again."""
    monkeypatch.setattr(last_copies, "_room", Room(60))
    monkeypatch.setattr(last_copies, "_EPOCHS", 3)
    monkeypatch.setattr(last_copies, "_TRIED", 16)
    monkeypatch.setattr(last_copies, "DEPTH", 4)
