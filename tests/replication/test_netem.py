"""A link that is slow, loses packets and parts, by the kernel's netem: Debian's kernel, in a VM."""

from __future__ import annotations

from pathlib import Path

import _cffi_backend
import pytest

from tests.replication import debian

PACKAGES = (
    "pyroute2", "numpy", "cffi", Path(_cffi_backend.__file__).name, "click", "rich", "pygments", "mdurl",
    "markdown_it", "blake3", "zstandard", "cryptography", "pytest", "_pytest", "pluggy", "iniconfig",
    "packaging", "py.py", "uffdtrack", "kvmglue", "checkpoint", "tests",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_bad_network(tmp_path: Path, seed: int) -> None:
    program = f"from tests.replication.netem_hosts import main\nmain({seed})\n"
    printed = debian.run(debian.kernel(tmp_path), tmp_path, program, ("veth", "sch_netem"), PACKAGES)
    assert "WHOLE" in printed and "DONE" in printed, printed[-8000:]
