"""Run a session of any kind: take epochs on schedule, and report them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live

from checkpoint import report
from checkpoint.cli.common import say
from checkpoint.cli.options import Options
from checkpoint.cli.waits import Interrupt
from checkpoint.epoch import EpochRow, TakenRow, TreeRow
from checkpoint.schedule import run_session
from checkpoint.session import R, TakenEpoch, Taker
from uffdtrack.errors import OutputError


class Progress:
    """One line on stderr, on a terminal only."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False, markup=False)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._on = console.is_terminal
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self._on:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._live.stop()

    def show(self, row: EpochRow | TreeRow) -> None:
        if self._on:
            rate = (row.epoch + 1) / max(time.monotonic() - self._started, 1e-3)
            self._live.update(
                f"epoch {row.epoch}   {row.pages} pages   {report.size(row.bytes)}   "
                f"pause {report.duration(row.times.pause_us)}   {rate:.1f} epochs/s",
                refresh=True,
            )


@dataclass(slots=True)
class Taken:
    """A session that is over.

    Attributes:
        summary: of its rows.
        ended: whether the target has ended.
        untold: we could not write to stdout; the epochs are safe.
        as_json: each row was printed.
    """

    summary: report.Summary
    ended: bool
    untold: OutputError | None
    as_json: bool

    def conclude(
        self,
        text: Callable[[report.Summary], str],
        farewell: str = "",
        tell: Callable[[str], None] = report.emit,
    ) -> None:
        """Say how the session went.

        Args:
            text: what to say of the rows, if they were not printed.
            farewell: what becomes of the target, if there is something to say.
            tell: where the summary goes.

        Raises:
            OutputError: we cannot write to stdout.
        """
        if not self.summary.last:
            say("interrupted before the base was whole: no epoch was taken")
        elif not self.untold and not self.as_json:
            try:
                tell(text(self.summary))
            except OutputError as error:
                self.untold = error
        if farewell:
            say(farewell)
        if self.untold:
            raise self.untold


def take_epochs(
    session: Taker[R],
    options: Options,
    interrupt: Interrupt,
    wait: Callable[[float], bool],
    warnings: Callable[[R], Iterable[str]],
    show: Callable[[R], None] = lambda row: None,
) -> Taken:
    """Take epochs as the options say, and report each.

    Args:
        interrupt: what `wait` waits with.
        wait: see `run_session`.
        warnings: a row's warnings, as text.
        show: shows a row as progress.
    """
    summary = report.Summary(options.schedule.every)
    printing = threading.Lock()

    def emit(row: R) -> None:
        summary.add(row)
        for warning in warnings(row):
            say(f"warning: {warning}")
        if options.as_json:
            with printing:
                interrupt.write(report.as_line(row) + "\n")
        show(row)

    def announce(number: int, epoch: TakenEpoch[R]) -> None:
        if options.as_json and options.durable and not epoch.base:
            with printing:
                interrupt.write(report.as_line(TakenRow(number, epoch.time_ns, epoch.times)) + "\n")

    session.pipeline.wake, session.pipeline.calm = interrupt.wake, interrupt.woken
    session.pipeline.durable = options.durable
    try:
        ended = run_session(session, options.schedule, wait, emit, say, announce)
        return Taken(summary, ended, None, options.as_json)
    except OutputError as error:
        return Taken(summary, False, error, options.as_json)  # the epoch is safe; nobody reads of it
