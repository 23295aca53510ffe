"""uffdtrack doctor"""

from __future__ import annotations

import asyncio
import sys

import click

from checkpoint import report
from checkpoint.cli.common import json_option
from checkpoint.health import checks
from checkpoint.replication.broker.broker_health import broker_checks
from checkpoint.replication.links.address import Address, parse
from uffdtrack.errors import InvalidInputError


@click.command("doctor", short_help="What this host can do, and the fixes.")
@click.argument("broker", required=False)
@json_option
def command(broker: str | None, as_json: bool) -> None:
    """Try what this host can do, and name the fix for each thing that it cannot.

    With BROKER, nats://HOST:PORT, try what that NATS server can do for replication.
    """
    found = asyncio.run(broker_checks(_address(broker))) if broker else checks()
    for c in found:
        if as_json:
            report.emit_json(
                {"schema": "uffdtrack/doctor/1", "check": c.name, "status": c.status,
                 "detail": c.detail, "fix": c.fix}
            )  # fmt: skip
        else:
            mark = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "blue"}[c.status]
            report.emit(f"{click.style(c.status, fg=mark)}  {c.name}: {c.detail}")
            if c.fix:
                report.emit(f"      fix: {c.fix}")
    failed = sum(c.status == "fail" for c in found)
    if not as_json:
        warned = sum(c.status == "warn" for c in found)
        report.emit(f"{len(found)} checks: {failed} failed, {warned} with a warning")
    if failed:
        sys.exit(3)


def _address(text: str) -> Address:
    """Of a server; a name behind it does not matter."""
    address = parse(text if text.count("/") > 2 else f"{text}/any")
    if address.scheme != "nats":
        raise InvalidInputError(f"{text!r} is no broker: nats://HOST:PORT is expected")
    return address
