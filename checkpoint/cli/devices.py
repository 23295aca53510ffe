"""Where the devices of a VM lead to."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from checkpoint.cli.options import Verb
from kvmglue import Outbox, Output, SerialStream, Vm, check_net, open_net, open_serial


@dataclass(frozen=True, slots=True)
class Devices:
    """Where the guest's devices lead to; see `device_options`.

    Attributes:
        serial: a file; None: stdout, or, if that is for JSON, stderr.
        net: see `open_net`.
    """

    serial: Path | None
    net: str | None

    def check(self) -> None:
        """Whether they can be opened, as far as is known before. Raises: as `open_serial`, `check_net`."""
        if self.serial:
            open_serial(self.serial).close()
        if self.net:
            check_net(self.net)

    def open(self, vm: Vm, as_json: bool, before: Output | None = None, unseen: bool = False) -> Outbox:
        """Args:
        before: what the guest had sent in the epoch that it goes on from. A file gets that once more, which
            changes nothing if it had it.
        unseen: all of that may not have been seen.
        """
        serial = open_serial(self.serial) if self.serial else SerialStream(2 if as_json else 1)
        with ExitStack() as opened:
            opened.callback(serial.close)
            outbox = Outbox(vm, serial, open_net(self.net) if self.net else None)
            opened.pop_all()
        if before:
            serial_at = before.serial_at if serial.repeatable else before.end[0]
            outbox.restore(before.start if unseen else (serial_at, before.end[1]), before)
        return outbox


def device_options(verb: Verb) -> Verb:
    """The options that say where the devices lead to; the verb gets them as one argument, `devices`."""

    @functools.wraps(verb)
    def with_devices(serial: Path | None, net: str | None, **given: Any) -> Any:
        return verb(devices=Devices(serial, net), **given)

    serial = click.option(
        "--serial", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
        help="Where the serial port goes: a file, each byte to its place since the guest began; or a "
        "FIFO. Default: stdout.",
    )  # fmt: skip
    net = click.option(
        "--net", metavar="WHERE",
        help="Where the network device leads to: tap:NAME or udp:HOST:PORT,HOST:PORT, the own address first.",
    )  # fmt: skip
    return serial(net(with_devices))
