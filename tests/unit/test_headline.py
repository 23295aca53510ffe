"""The table of all benchmarks takes its place in the documentation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import headline

ROWS = [
    {"run": "uffdtrack", "bytes_per_s": 9e8, "later_us": [900.0], "longest_us": 1100.0},
    {"run": "a plain copy", "bytes_per_s": 1.5e9},
]


def publish(tmp_path: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    run, docs = tmp_path / "run", tmp_path / "docs"
    run.mkdir()
    (docs / "img").mkdir(parents=True)
    (docs / "performance.md").write_text(page)
    (run / "base.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setattr(sys, "argv", ["headline", "-o", str(run), "--docs", str(docs)])
    headline.main()
    return docs


def test_the_table_replaces_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = "# Performance\n\n<!-- headline -->\n", "<!-- /headline -->\n\nThe rest.\n"
    docs = publish(tmp_path, f"{before}| an older one |\n{after}", monkeypatch)
    page = (docs / "performance.md").read_text()
    assert page.startswith(before) and page.endswith(after)
    assert "an older one" not in page
    assert (
        "| base | 4 GiB under load, copied | 0.75 GB/s | 0.90 (0.90-0.90) | yes | a plain copy 1.50 |" in page
    )
    assert (
        "| base | 4 GiB under load, stood for it at a time | at most 0.90 ms | 1.10 (1.10-1.10) | 0.82 |"
        in page
    )
    assert [line["values"] for line in json.loads((docs / "headline.json").read_text())] == [[0.9], [1.1]]


def test_a_page_without_a_place_for_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "# Performance\n\n<!-- headline -->\nno end\n"
    with pytest.raises(SystemExit, match="where the table belongs"):
        publish(tmp_path, page, monkeypatch)
    assert (tmp_path / "docs" / "performance.md").read_text() == page
