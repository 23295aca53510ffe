"""What `--json` prints stays what it is, byte for byte: lines that earlier versions have printed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from checkpoint.epoch import EpochRow, LeftOut, Membership, TreeRow
from checkpoint.migrate import MigrationRow
from checkpoint.row import Row

LINES = (Path(__file__).parent / "rows.jsonl").read_text().splitlines()
KINDS: dict[str, type[Row]] = {kind.schema: kind for kind in (EpochRow, TreeRow, MigrationRow)}


def row_of(line: str) -> Row:
    stored = json.loads(line)
    kind = KINDS[stored["schema"]]
    row = kind.of_json(stored)
    if isinstance(row, TreeRow) and row.processes:
        stored_left_out = [LeftOut(**one) for one in stored["left_out"]]
        processes = [row_of(json.dumps(one)) for one in stored["processes"]]
        return dataclasses.replace(row, left_out=stored_left_out, processes=processes)
    if isinstance(row, EpochRow) and "start_time" in stored:
        return dataclasses.replace(row, member=Membership.of_json(stored))
    return row


@pytest.mark.parametrize("line", LINES, ids=[f"{i}" for i in range(len(LINES))])
def test_rows_are_printed_as_ever(line: str) -> None:
    row = row_of(line)
    assert json.dumps(row.to_json()) == line
    assert type(row).schema == json.loads(line)["schema"]


def test_a_row_of_an_older_version() -> None:
    stored = json.loads(LINES[0])
    for name in ("resume_us", "late", "skipped", "skip_reason"):
        del stored[name]
    row = EpochRow.of_json({**stored, "unknown": 1})
    assert row.times.resume_us is None and row.late == 0


def test_a_row_of_the_first_version() -> None:
    stored = json.loads(LINES[0])
    del stored["scanned"]
    assert not EpochRow.of_json(stored).scanned


def test_a_row_that_lacks_what_all_have() -> None:
    with pytest.raises(KeyError, match="pages"):
        EpochRow.of_json({"epoch": 0, "base": True, "pid": 1, "engine": "scan"})
