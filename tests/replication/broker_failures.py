"""What fails in a trial with a broker, and how it goes on."""

from __future__ import annotations

import signal

from tests.replication.broker_injection import BrokerTrial
from tests.replication.injection import Deed


def _nothing(trial: BrokerTrial) -> None:
    pass


def _kill(role: str) -> Deed:
    def kill(trial: BrokerTrial) -> None:
        process = trial.process(role)
        process.kill()
        process.has_ended(10.0)

    return kill


def _stop_standby(trial: BrokerTrial) -> None:
    trial.process("standby").send(signal.SIGSTOP)


def _go_on(trial: BrokerTrial) -> None:
    for one in (trial.active, *trial.standbys):
        if one:
            one.send(signal.SIGCONT)


def _kill_server(trial: BrokerTrial) -> None:
    trial.cluster.servers[trial.server()].kill()


def _stop_server(trial: BrokerTrial) -> None:
    trial.cluster.servers[trial.server()].signal(signal.SIGSTOP)


def _heal(trial: BrokerTrial) -> None:
    trial.cluster.heal()


SERVERS: dict[str, Deed] = {
    "server killed": _kill_server,
    "server paused": _stop_server,
    "server slow": lambda trial: trial.cluster.slow(trial.server()),
    "server cut off": lambda trial: trial.cluster.part(trial.server(), clients=True),
    "server parted": lambda trial: trial.cluster.part(trial.server(), clients=False),
    "server's disk full": lambda trial: trial.cluster.fill(trial.server()),
}
"""Of one of three; a server that is parted is cut off from the others, and not from clients."""
BROKER_FAILURES: dict[str, tuple[Deed, Deed]] = {
    "active killed": (_kill("active"), _nothing),
    "standby killed": (_kill("standby"), _nothing),
    "active paused": (lambda trial: trial.stop_active(), _go_on),
    "standby paused": (_stop_standby, _go_on),
    **{name: (deed, _heal) for name, deed in SERVERS.items()},
    "none": (_nothing, _nothing),
}
"""For each, what is done at the step, and what is done when it has lasted."""
