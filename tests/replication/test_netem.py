"""A link that is slow, loses packets and parts, by the kernel's netem: Debian's kernel, in a VM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.replication import debian


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_bad_network(tmp_path: Path, seed: int) -> None:
    program = f"from tests.replication.netem_hosts import main\nmain({seed})\n"
    printed = debian.run(debian.kernel(tmp_path), tmp_path, program, ("veth", "sch_netem"))
    assert "WHOLE" in printed and "DONE" in printed, printed[-8000:]
