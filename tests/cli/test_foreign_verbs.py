"""Verbs that other packages register."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest
from click.testing import CliRunner

from checkpoint.cli import main
from uffdtrack.errors import UnsupportedError


def test_a_verb_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others are there."""
    verbs = EntryPoints([EntryPoint("broken", "no_such_package.verb:command", "uffdtrack.verbs")])
    monkeypatch.setattr(main, "entry_points", verbs.select)
    done = CliRunner().invoke(main.cli, ["--help"])
    assert done.exit_code == 0 and "rollback" in done.output and "broken" not in done.output
    done = CliRunner().invoke(main.cli, ["broken"])
    assert isinstance(done.exception, UnsupportedError) and "no_such_package" in str(done.exception)
