"""Situations from public bug reports: small programs with a `run.sh` each, which live beside the project.

UFFDTRACK_CASES names their directory (`make test-cases` has a default). A `run.sh` gets the command in UT,
and ends with 0 where all is right and with 77 where it cannot be tried here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import missing

DIRECTORY = os.environ.get("UFFDTRACK_CASES", "")
CASES = sorted(path.parent for path in Path(DIRECTORY).glob("*/run.sh")) if DIRECTORY else []
NOT_HERE = 77

pytestmark = pytest.mark.slow


def test_there_are_cases() -> None:
    if not CASES:
        missing("UFFDTRACK_CASES, a directory of cases")


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.name)
def test_case(case: Path, root: None) -> None:
    command = Path(sys.executable).with_name("uffdtrack")
    done = subprocess.run(
        ["bash", case / "run.sh"],
        env={**os.environ, "UT": str(command)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
    )
    if done.returncode == NOT_HERE:
        pytest.skip(done.stdout.strip().rpartition("\n")[2])
    assert done.returncode == 0, done.stdout + done.stderr
