"""The options of a replicated session. Without asyncio and ssl, which would slow down every start."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from checkpoint.cli.common import Time
from checkpoint.cli.options import Verb
from uffdtrack.errors import InvalidInputError

DEADLINE = "1s"
tls_option = click.option(
    "--tls", "keys", type=click.Path(path_type=Path), metavar="DIR",
    help="The keys of both hosts, as `uffdtrack keys` makes them: for tls://.",
)  # fmt: skip
insecure_option = click.option(
    "--insecure", is_flag=True, help="Plain tcp:// to another host is wanted: nothing is encrypted."
)
deadline_option = click.option(
    "--deadline", type=Time(), default=DEADLINE, show_default=True,
    help="The other side counts as silent after so long without a word.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WhereTo:
    """Where a session's epochs go, as the user gave it; `name` and `fence` may be empty.

    Attributes:
        hold_net: the packets of a process are held, see `HeldNet`.
    """

    address: str
    name: str
    keys: Path | None
    insecure: bool
    fence: str
    deadline: float
    hold_net: bool = False


def replicate_options(verb: Verb) -> Verb:
    """The options of a session whose epochs go to a standby; the verb gets `replicate`, None without."""
    every_option = [
        click.option(
            "--replicate", "where", metavar="ADDRESS",
            help="Send the epochs to a standby, which listens there: tls://HOST:PORT, unix:PATH or "
            "tcp://HOST:PORT; or to a broker: nats://HOST:PORT/NAME (docs/fault-tolerance.md).",
        ),
        click.option("--name", help="What `status` calls it.  [default: the guest's or the process's name]"),
        tls_option,
        insecure_option,
        click.option(
            "--fence", default="", metavar="lock:PATH",
            help="A file that this side locks as long as it runs: the standby, given the same, takes over "
            "only with that lock.",
        ),
        deadline_option,
    ]  # fmt: skip

    @functools.wraps(verb)
    def with_options(
        where: str | None,
        name: str | None,
        keys: Path | None,
        insecure: bool,
        fence: str,
        deadline: float,
        **given: Any,
    ) -> Any:
        if not where:
            if keys or fence or insecure or name:
                raise InvalidInputError("--name, --tls, --insecure and --fence go with --replicate")
            return verb(replicate=None, **given)
        found = WhereTo(where, name or "", keys, insecure, fence, deadline)
        return verb(replicate=found, **given)

    decorated: Verb = with_options
    for option in reversed(every_option):
        decorated = option(decorated)
    return decorated
