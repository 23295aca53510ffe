"""What the signal gate makes of the core's answers."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from uffdtrack import signal_gate
from uffdtrack.signal_gate import SignalGate

VCPUS: Any = SimpleNamespace(native=None, in_state=lambda state: [], take_gone=lambda: ())
"""Nobody is left in them who has ended: he has taken his leave in time."""


def answering(monkeypatch: pytest.MonkeyPatch, name: str, *answers: int) -> list[int]:
    """The core gives these answers, one after the other; returns those that are left."""
    left = list(answers)
    core = SimpleNamespace(ut_let_run=lambda native: None, UT_VCPU_GONE=2)
    setattr(core, name, lambda *_: left.pop(0))
    monkeypatch.setattr(signal_gate, "lib", core)
    return left


def test_a_vcpu_that_leaves_is_no_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """All run on then: to say that they stand would have the caller copy what they write."""
    answering(monkeypatch, "ut_wait_full", -errno.ESRCH, 0, 1)
    gate = SignalGate(VCPUS)
    assert [gate.wait(0), gate.wait(0), gate.wait(0)] == [False, False, True]


def test_a_pause_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    left = answering(monkeypatch, "ut_pause", -errno.ESRCH, -errno.ESRCH, 0)
    SignalGate(VCPUS).pause(1)
    assert left == []
