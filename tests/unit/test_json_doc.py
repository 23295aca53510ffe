"""docs/json.md names each field of each line of `--json`, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from checkpoint.chain_writer import ChainWriter
from checkpoint.cli.main import cli
from checkpoint.epoch import EpochRow, LeftOut, MemberEpoch, Membership, TakenRow, Times, TreeRow
from checkpoint.facts import ProcessFacts
from checkpoint.health import Check
from checkpoint.migrate import MigrationRow
from checkpoint.objects import ObjectFacts
from checkpoint.replication.links.keys import KeysRow
from checkpoint.replication.status import StatusRow, SwitchoverRow
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.request import outcome_row
from checkpoint.rollback.tree import TreeOutcome, tree_outcome_row
from checkpoint.row import Row
from checkpoint.tree import TreeWriter
from tests.unit import images
from tests.unit.test_layers import ROOT

TEXT = (ROOT / "docs" / "json.md").read_text()
OPTIONAL = {"parent_epoch", "ends", "stay"}
OF_TREES = {"processes", "files"}
"""Fields that a line of `verify` has only there."""


def tables(text: str) -> dict[str, set[str]]:
    """The fields of the table of each schema, and of `ls`; they stand below `### schema` or `## verb`."""
    found = {}
    for section in re.split(r"^#{2,3} ", text, flags=re.MULTILINE)[1:]:
        name = section.splitlines()[0].strip("`").removeprefix("uffdtrack/").removesuffix("/1")
        cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        found[name] = {field for cell in cells for field in re.findall(r"`(\w+)`", cell)}
    return {name: fields for name, fields in found.items() if fields}


DOCUMENTED = tables(TEXT)


def names(kind: type[Row]) -> set[str]:
    """What of an object of that kind a line can have, with the fields of those that it puts among its own."""
    return kind.names() - {"schema"}


@pytest.mark.parametrize("kind", [EpochRow, TakenRow, TreeRow, KeysRow, StatusRow, SwitchoverRow])
def test_rows(kind: type[Row]) -> None:
    own = names(kind)
    if kind is EpochRow:
        own = own - {"member"} | names(Membership)
    assert DOCUMENTED[kind.schema.split("/")[1]] == own


def test_what_the_check_sees() -> None:
    """Negative control: a field that nothing has, and one that is not named."""
    before = DOCUMENTED["epoch"]
    assert tables(TEXT.replace("| `waited_us` |", "| `waited_for` |"))["epoch"] == before - {"waited_us"} | {
        "waited_for"
    }
    assert names(Times) <= before and names(TreeRow) - names(Times) != before


def check(line: str, schema: str) -> None:
    row = json.loads(line)
    assert row.pop("schema") == f"uffdtrack/{schema}/1"
    least = DOCUMENTED[schema] - OPTIONAL - (OF_TREES if schema == "verify" else set())
    beside = {"show": DOCUMENTED["epoch"], "show-tree": DOCUMENTED["tree-epoch"]}.get(schema, set())
    assert least <= row.keys() <= DOCUMENTED[schema] | beside


def run(*arguments: object) -> list[str]:
    done = CliRunner().invoke(cli, [str(one) for one in (*arguments, "--json")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    with ChainWriter(tmp_path / "c", b"", force=False) as writer:
        images.write(writer, dict.fromkeys(range(8), 1), base=True)
        images.write(writer, {1: 2})
        images.write(writer, {2: 2})
    return tmp_path / "c"


def test_lines_of_a_chain(chain: Path, tmp_path: Path) -> None:
    beside = json.loads(run("ls", chain)[1]).keys() - names(EpochRow)
    assert beside <= DOCUMENTED["ls"] <= beside | {"digest", "parent_epoch"}
    check(run("show", f"{chain}@1")[0], "show")
    check(run("verify", chain)[0], "verify")
    check(run("diff", f"{chain}@0", f"{chain}@2")[0], "diff")
    check(run("export", f"{chain}@1", "-o", tmp_path / "core")[0], "export")
    check(run("compact", chain, "--before", 1)[0], "compact")
    shown = json.loads(run("show", f"{chain}@2")[0])
    for row in (shown["process"], shown["region_list"][0], shown["thread_list"][0]):
        assert all(f"`{name}`" in TEXT for name in row)


def test_lines_of_a_tree(tmp_path: Path) -> None:
    row = TreeRow(
        epoch=0, pid=1, engine="scan", base=True, pages=0, bytes=0, threads=1, regions=1, compared=0,
        times=Times(1, 1, 0, 0, 0), left_out=[],
    )  # fmt: skip
    with TreeWriter(tmp_path, b"", force=False) as writer:
        writer.commit([], row)
    check(run("show", tmp_path)[0], "show-tree")
    for kind in (LeftOut, MemberEpoch, ProcessFacts, ObjectFacts):
        assert all(f"`{name}`" in TEXT for name in names(kind) - {"closed"})


def test_lines_of_rollbacks_and_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Outcome(1)
    check(json.dumps(outcome_row(7, done)), "rollback")
    check(json.dumps(tree_outcome_row(7, TreeOutcome(1, {7: done}))), "tree-rollback")
    monkeypatch.setattr("checkpoint.cli.doctor.checks", lambda: [Check("one", "pass", "all is well")])
    check(run("doctor")[0], "doctor")


def test_each_schema_is_there() -> None:
    """All that occur in the sources, but for those of files, of sockets and of a benchmark."""
    sources = [path for part in ("checkpoint", "benchmarks") for path in (ROOT / part).rglob("*.py")]
    found = {name for path in sources for name in re.findall(r'"uffdtrack/([\w-]+)/1"', path.read_text())}
    elsewhere = {
        "image",
        "tree",
        "rollback-request",
        "rollback-begun",
        "error",
        "control-request",
        "control-progress",
    }
    assert found - elsewhere - {MigrationRow.schema.split("/")[1]} == DOCUMENTED.keys() - {"ls"}


def test_lines_of_the_benchmark() -> None:
    text = (ROOT / "benchmarks" / "ab" / "compare.py").read_text()
    objects = re.findall(r'"schema": SCHEMA,(.*?)\}', text, flags=re.DOTALL)
    own = {name for one in objects for name in re.findall(r'"(\w+)":', one)} | {"round"}
    assert len(objects) == 4 and own == DOCUMENTED["ab"]
