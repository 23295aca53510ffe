"""uffdtrack bench ab: every engine, the same pages, and a difference is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.ab import AB_ENGINES, Setup, check_equal, crossover, run
from tests.contract.conftest import missing
from tests.helpers import Run
from uffdtrack import probe
from uffdtrack.errors import InvalidInputError, TrackerError

SMALL = ["--ram", "16MiB,32MiB", "--dirty", "20,200", "--rounds", 1]


@pytest.fixture(autouse=True)
def samples(kvm: None) -> None:
    if probe().perf_faults:
        missing("page-fault samples")


def test_rows(uffdtrack: Run) -> None:
    lines = uffdtrack("bench", "ab", *SMALL, "--json").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(row["schema"] == "uffdtrack/ab/1" for row in rows)
    for series in ("ram", "dirty", "progress"):
        assert {row["engine"] for row in rows if row["series"] == series} == set(AB_ENGINES)
    assert {(row["ram"] >> 20, row["dirty"]) for row in rows if row["series"] == "dirty"} == {
        (32, 20),
        (32, 200),
    }
    for row in rows:
        if row["series"] == "pause":
            assert row["overshoot"] <= 0, "exact, or early"
    assert {row["engine"] for row in rows if row["series"] == "pause"} == {
        "kvm-ring",
        "sync",
        "ring",
        "inline",
    }


def test_table_and_plots(uffdtrack: Run, tmp_path: Path) -> None:
    options = [*SMALL, "--vcpus", 2, "--engines", "kvm-bitmap,kvm-ring,scan,ring"]
    done = uffdtrack("bench", "ab", *options, "-o", tmp_path / "ab")
    assert "exactly the pages" in done.stdout and "KVM's bitmap costs less" in done.stdout
    for name in ("ab-cost.png", "ab-guest.png"):
        assert (tmp_path / "ab" / name).read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "ab" / "ab.jsonl").read_text().splitlines()) > 20


def test_a_difference_is_an_error() -> None:
    check_equal("x", {1, 2}, {1, 2}, exact=True)
    check_equal("x", {1, 2, 3}, {1, 2}, exact=False)
    with pytest.raises(TrackerError, match="1 are missing"):
        check_equal("x", {1}, {1, 2}, exact=False)
    with pytest.raises(TrackerError, match="1 were not written"):
        check_equal("x", {1, 2, 3}, {1, 2}, exact=True)


@pytest.mark.parametrize(
    "bad",
    [
        {"engines": ["none"]},
        {"dirties": [1 << 30]},
        {"typical": 1 << 20},
        {"vcpus": 0},
        {"limit": 100},
    ],
)
def test_plans_that_cannot_be(bad: dict[str, object]) -> None:
    setup = Setup(**{"rams": [16 << 20], "dirties": [100], "limit": 512, **bad})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        run(setup, 1, lambda row: None, lambda text: None)


def test_crossover() -> None:
    def rows(ring: dict[int, float], bitmap: dict[int, float]) -> list[dict[str, object]]:
        return [
            {"series": "dirty", "engine": engine, "dirty": n, "harvest_us": us, "rearm_us": 0.0}
            for engine, costs in (("kvm-ring", ring), ("kvm-bitmap", bitmap))
            for n, us in costs.items()
        ]

    assert crossover(rows({10: 1, 100: 10, 1000: 100}, {10: 4, 100: 20, 1000: 50})) == pytest.approx(
        316, abs=1
    )
    assert crossover(rows({10: 1, 100: 10}, {10: 4, 100: 20})) is None
    assert crossover(rows({10: 5, 100: 30}, {10: 4, 100: 20})) == 10
