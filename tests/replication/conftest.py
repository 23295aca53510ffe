"""Fixtures: keys of two hosts, NATS servers of both versions, a starter of processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.links.keys import make_pair
from tests.contract.conftest import need_kvm
from tests.replication.servers import Server
from tests.replication.zygote import Zygote


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Credentials, Credentials]:
    """Of an active and its standby on this host."""
    directory = tmp_path_factory.mktemp("keys")
    make_pair(directory)
    return Credentials.load(directory, "active"), Credentials.load(directory, "standby")


@pytest.fixture(params=["2.9", "2.15"], scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests of a file share: each uses a name of its own."""
    with Server(request.param, tmp_path_factory.mktemp("nats")) as one:
        yield one


@pytest.fixture(params=["2.9", "2.15"])
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill."""
    with Server(request.param, tmp_path / "nats") as one:
        yield one


@pytest.fixture(scope="session")
def zygote(kernel: None) -> Iterator[Zygote]:
    """It starts the command line, for guests."""
    need_kvm()
    with Zygote() as zygote:
        yield zygote
