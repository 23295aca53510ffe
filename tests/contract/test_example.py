"""The examples of the README, as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.combinations import OWN_PAUSING, on

pytestmark = pytest.mark.usefixtures("kernel")
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "guest_checkpoints.py"


@on(OWN_PAUSING)
def test_guest_checkpoints(engine: str) -> None:
    done = subprocess.run([sys.executable, EXAMPLE, engine], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "byte for byte" in done.stdout
    assert len(EXAMPLE.read_text().splitlines()) < 60
