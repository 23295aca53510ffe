"""Here the command line is started as a user does."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.conftest import start_anew


@pytest.fixture
def starts() -> Callable[..., subprocess.CompletedProcess[str]]:
    return start_anew
