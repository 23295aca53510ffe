"""Fixtures of links."""

from __future__ import annotations

import pytest

from checkpoint.replication.credentials import Credentials
from checkpoint.replication.keys import make_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Credentials, Credentials]:
    """Of an active and its standby on this host."""
    directory = tmp_path_factory.mktemp("keys")
    make_pair(directory)
    return Credentials.load(directory, "active"), Credentials.load(directory, "standby")
