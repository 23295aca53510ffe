"""uffdtrack bench ab. It is found by its entry point (`uffdtrack.verbs` in pyproject.toml)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.ab import AB_ENGINES, Setup, crossover, emulated, run
from benchmarks.ab.tables import tables
from benchmarks.plots import draw_ab, pyplot
from checkpoint import report
from checkpoint.cli.common import DIRECTORY, json_option, say
from checkpoint.files import translate
from uffdtrack import parse_size
from uffdtrack.errors import InvalidInputError, UnsupportedError

DEFAULT = Setup()


@click.group("bench")
def command() -> None:
    """Compare trackers on this host."""


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        found = [parse_size(part) for part in value.split(",")]
    except InvalidInputError as error:
        raise click.BadParameter(str(error)) from error
    if min(found) <= 0:
        raise click.BadParameter("more than 0")
    if param.name == "ram" and (min(found) < 8 << 20 or any(n % 4096 for n in found)):
        raise click.BadParameter("whole pages, and 8 MiB or more")
    return found


@command.command("ab", short_help="Every tracker on one guest, interleaved.")
@click.option("--engines", help=f"Of {','.join(AB_ENGINES)}; default: all.")
@click.option("--ram", callback=_numbers, help="Sizes; default: 64MiB,256MiB,1GiB,4GiB.")
@click.option(
    "--dirty",
    callback=_numbers,
    help="Pages a cycle; default: 10,100,1000,10000,30000. The series over --ram has 300.",
)
@click.option("--vcpus", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=DEFAULT.rounds, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("-o", "--output", "directory", type=DIRECTORY, help="Write the series and plots there.")
@json_option
def ab(
    engines: str | None,
    ram: list[int] | None,
    dirty: list[int] | None,
    vcpus: int,
    rounds: int,
    seed: int,
    directory: Path | None,
    as_json: bool,
) -> None:
    """One guest, every tracker, interleaved: what a checkpoint costs, and whether all see the same pages.

    Engines ring and inline are not for VMs: a native thread writes the same pages there.
    """
    rams, dirties = ram or DEFAULT.rams, dirty or DEFAULT.dirties
    least = min(rams) // 4096
    setup = Setup(
        engines=engines.split(",") if engines else AB_ENGINES,
        rams=rams,
        dirties=[n for n in dirties if n <= max(rams) // 4096] if dirty is None else dirties,
        typical=min(DEFAULT.typical, least // 4),
        vcpus=vcpus,
        rounds=rounds,
        limit=max(min(DEFAULT.limit, least // 4), 256 * vcpus),
    )
    plots = False
    if directory:
        prepare(directory)
        plots = can_plot()
    rows: list[dict[str, Any]] = []

    def emit(row: dict[str, Any]) -> None:
        rows.append(row)
        if as_json:
            report.emit_json(row)

    slow, ns = emulated()
    run(setup, seed, emit, say)
    if not as_json:
        tables(rows)
        report.emit()
        turn = f"({ns:.1f} ns a turn of an empty loop)"
        how = "emulates the guest's instructions" if slow else "runs the guest's instructions as they are"
        report.emit(f"KVM {how} here {turn}. The guest's own times, its faults among them, are KVM's affair;")
        report.emit("harvest and rearm are the trackers'.")
        most = max(rams)
        if "kvm-ring" in setup.engines and "kvm-bitmap" in setup.engines:
            pages = crossover(rows)
            where = (
                "at no number measured"
                if pages is None
                else (f"from {pages:.0f} dirty pages of {most >> 20} MiB on ({pages * 409600 / most:.3g} %)")
            )
            report.emit(f"KVM's bitmap costs less than its ring {where}.")
        report.emit("Every engine listed exactly the pages that its guest wrote.")
    if directory:
        keep(rows, directory, plots)


def prepare(directory: Path) -> None:
    """Find out now whether it can be written. What an earlier run has left there stays until we are done.

    Raises:
        PermissionDeniedError, StorageError: it cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise translate(error, directory) from error


def can_plot() -> bool:
    """Whether matplotlib is there; if not, say so now, and not after minutes."""
    try:
        pyplot()
    except UnsupportedError as error:
        say(f"warning: no plots: {error}")
        return False
    return True


def keep(rows: list[dict[str, Any]], directory: Path, plots: bool) -> None:
    """The series and its plots, all made before the first one takes its name."""
    try:
        with tempfile.TemporaryDirectory(dir=directory) as made:
            (Path(made) / "ab.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            if plots:
                draw_ab(rows, Path(made))
            for path in sorted(Path(made).iterdir()):
                path.replace(directory / path.name)
                if path.suffix != ".jsonl":
                    say(f"drawn: {directory / path.name}")
    except OSError as error:
        raise translate(error, directory) from error
