"""The options that every session has, of a process, a tree or a VM."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from checkpoint.cli.common import DIRECTORY, Time, json_option, key_option
from checkpoint.schedule import Schedule

Verb = Callable[..., Any]
WITHOUT_OUTPUT = 1.0
"""At `--every output` so many seconds pass between two epochs if there is none."""
AT_OUTPUT = '; of a guest that is replicated also "output": when it has sent something.'


class Every(Time):
    """100ms, 2s, or "output"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return math.inf if value == "output" else super().convert(value, param, ctx)


@dataclass(frozen=True, slots=True)
class Options:
    """The user's options of a session (`session_options`); times in seconds, None: no limit."""

    directory: Path | None
    every: float
    count: int | None
    duration: float | None
    engine: str
    max_dirty: int | None
    durable: float | None
    force: bool
    key: bytes
    as_json: bool
    follow_shared: bool = False
    keep: int | None = None
    """Only sessions of processes have the last two."""

    @property
    def at_output(self) -> bool:
        """An epoch is due when the guest has sent something."""
        return math.isinf(self.every)

    @property
    def schedule(self) -> Schedule:
        return Schedule(min(self.every, WITHOUT_OUTPUT), self.count, self.duration)


def session_options(output: str, required: bool, engines: Sequence[str], engine: str,
                    document: str, max_dirty: str, follow_shared: str = "", keep: str = "",
                    at_output: bool = False,
                    ) -> Callable[[Verb], Verb]:  # fmt: skip
    """The options of a session, which a verb gets as one argument, `options`.

    Args:
        output: the help of --output; `required`: the user has to give it.
        engines: the choices; `engine` is the default, `document` describes them.
        max_dirty: the help of --max-dirty.
        at_output: --every can be "output".
        follow_shared, keep: the help of --follow-shared and --keep; "": there is no such option.
    """
    every_option = [
        click.option("-o", "--output", "directory", type=DIRECTORY, required=required, help=output),
        click.option(
            "--every", type=Every() if at_output else Time(), default="1s", show_default=True,
            help="Time from one epoch to the next" + (AT_OUTPUT if at_output else "."),
        ),
        click.option(
            "--count", type=click.IntRange(min=1), help="End after N epochs, the base included."
        ),
        click.option("--duration", type=Time(), help="End so long after the base."),
        click.option(
            "--engine", type=click.Choice(engines), default=engine, show_default=True,
            help=f"How writes are tracked ({document}).",
        ),
        click.option("--max-dirty", type=click.IntRange(min=1), metavar="PAGES", help=max_dirty),
        click.option(
            "--durable", type=Time(), metavar="TIME",
            help="An epoch may become safe so long after it was taken, together with others; --json then has "
            "a line for each of the two. Default: as soon as possible.",
        ),
        click.option(
            "--force", is_flag=True, help="Replace a chain that is there, once the new base is safe on disk."
        ),
        key_option,
        json_option,
    ]  # fmt: skip
    if follow_shared:
        every_option.append(click.option("--follow-shared", is_flag=True, help=follow_shared))
    if keep:
        keep_option = click.option("--keep", type=click.IntRange(min=1), metavar="K", help=keep)
        every_option.append(keep_option)

    def decorate(verb: Verb) -> Verb:
        @functools.wraps(verb)
        def with_options(**given: Any) -> Any:
            own = [part.name for part in fields(Options) if part.name in given]
            options = Options(**{name: given.pop(name) for name in own})
            return verb(options=options, **given)

        decorated: Verb = with_options
        for option in reversed(every_option):
            decorated = option(decorated)
        return decorated

    return decorate
