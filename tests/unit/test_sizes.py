"""Files are small: Python under 300 lines, C under 500."""

from __future__ import annotations

import pytest

from tests.unit.test_layers import ROOT

PARTS = ("uffdtrack", "kvmglue", "checkpoint", "native_common", "benchmarks", "examples", "tests")
LIMITS = {"*.py": 300, "*.c": 500, "*.h": 500}


@pytest.mark.parametrize("pattern", LIMITS)
def test_files_are_small(pattern: str) -> None:
    paths = [path for part in PARTS for path in (ROOT / part).rglob(pattern) if path.name != "_core.c"]
    assert paths
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name: n for name, n in lengths.items() if n >= LIMITS[pattern]} == {}
