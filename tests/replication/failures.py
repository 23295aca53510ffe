"""What fails in a trial, and how it goes on."""

from __future__ import annotations

import contextlib
import signal

from tests.replication.injection import Deed, Trial
from tests.replication.relay import BACK, THERE

SLOW = 0.004
"""Seconds for each message."""


def _nothing(trial: Trial) -> None:
    pass


def _send(role: str, number: signal.Signals) -> Deed:
    def send(trial: Trial) -> None:
        process = getattr(trial, role)
        process.send(number)
        if number is signal.SIGKILL:
            process.has_ended(10.0)

    return send


def _parted(*ways: str) -> Deed:
    return lambda trial: trial.relay.part(*ways)


def _slowed(trial: Trial) -> None:
    trial.relay.delays = {THERE: SLOW, BACK: SLOW}


def _heal(trial: Trial) -> None:
    trial.relay.heal()


def _lose(trial: Trial) -> None:
    """The active is gone with all that it has sent since."""
    assert trial.active
    trial.active.kill()
    trial.active.has_ended(10.0)
    trial.relay.cut()
    trial.relay.heal()


def _fill(trial: Trial) -> None:
    """Leave no free byte."""
    disk = trial.chains[0].parent
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


def _free(trial: Trial) -> None:
    (trial.chains[0].parent / "filler").unlink()


FAILURES: dict[str, tuple[Deed, Deed]] = {
    "active killed": (_send("active", signal.SIGKILL), _nothing),
    "standby killed": (_send("standby", signal.SIGKILL), _nothing),
    "active paused": (_send("active", signal.SIGSTOP), _send("active", signal.SIGCONT)),
    "standby paused": (_send("standby", signal.SIGSTOP), _send("standby", signal.SIGCONT)),
    "link cut": (lambda trial: trial.relay.cut(), _nothing),
    "half closed there": (lambda trial: trial.relay.half_close(THERE), _nothing),
    "half closed back": (lambda trial: trial.relay.half_close(BACK), _nothing),
    "partition": (_parted(THERE, BACK), _heal),
    "partition there": (_parted(THERE), _heal),
    "partition back": (_parted(BACK), _heal),
    "active lost": (_parted(THERE), _lose),
    "answers lost": (_parted(BACK), _lose),
    "link slow": (_slowed, _heal),
    "disk full": (_fill, _free),
    "none": (_nothing, _nothing),
}
"""For each, what is done at the step, and what is done when it has lasted."""
