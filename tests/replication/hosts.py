"""Several hosts of one guest, as processes of this one: who is active, and what the serial port has seen."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from checkpoint.errors import LinkError
from checkpoint.replication.asking import _last_answer, switch_over
from checkpoint.replication.control import SECONDS, run_directory
from checkpoint.replication.status import StatusRow, SwitchoverRow
from tests.helpers import DEADLINE
from tests.replication.outside import counted
from tests.replication.pair import until
from tests.replication.zygote import Hook, Started, Zygote

PACE = 60_000
MORE = 4
HOOKS = [Hook("", "lease 2")]


class Hosts:
    """Attributes: processes: by name; place: a directory for all of them."""

    def __init__(self, zygote: Zygote, place: Path) -> None:
        self.place = place
        self.processes: dict[str, Started] = {}
        self._zygote = zygote
        self._serial = place / "serial"

    def start(self, name: str, *words: object) -> None:
        """The last one of that name has ended."""
        log = self.place / f"{name}{len(self.processes)}.log"
        all_words = [*words, "--serial", self._serial, "--deadline", "300ms"]
        self.processes[name] = self._zygote.start(all_words, log, PACE, HOOKS)

    def start_standby(self, name: str, *words: object) -> None:
        self.start(name, "standby", *words, "-o", self.place / f"{name}{len(self.processes)}")
        self.await_said(name, "(listening|following) ")

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(DEADLINE)

    # -- what is so -------------------------------------------------------------------------------

    def row(self, name: str) -> StatusRow | None:
        """What `status` has of it."""
        found = self._asked(name)
        return found[1] if found else None

    def _asked(self, name: str) -> tuple[Path, StatusRow] | None:
        """Its socket, and what it says. One that was killed before may have left another of its number."""
        for path in run_directory().glob(f"{self.processes[name].pid}.*"):
            with suppress(LinkError):
                return path, StatusRow.of_json(_last_answer(path, "status", SECONDS, lambda text: None))
        return None

    def state(self, name: str) -> str:
        row = self.row(name)
        return f"{row.role} {row.state}" if row else ""

    def await_state(self, name: str, state: str) -> None:
        self._until(lambda: self.state(name) == state, f"{name} is {state}")

    def await_said(self, name: str, pattern: str) -> None:
        self._until(lambda: re.search(pattern, self.processes[name].said), f"{name} says {pattern}")

    def await_protected(self, name: str) -> None:
        """A standby has acknowledged what this one has sent."""

        def is_protected() -> bool:
            row = self.row(name)
            return bool(row and row.state == "followed" and (row.acknowledged or 0) > 2)

        self._until(is_protected, f"{name} is protected")

    def active_of(self, *names: str) -> str:
        """Wait until one of them is the active."""
        found: list[str] = []

        def known() -> bool:
            found[:] = [name for name in names if self.state(name).startswith("active")]
            return bool(found)

        self._until(known, f"one of {names} is active")
        return found[0]

    def goes_on(self) -> None:
        """The guest prints some numbers more."""
        was = self._lines()
        self._until(lambda: self._lines() >= was + MORE, f"the guest goes on behind {was}")

    def check(self) -> None:
        """All that it has printed is there, once."""
        data = self._serial.read_bytes()
        assert counted(len(data), 1).startswith(data)
        for process in self.processes.values():
            assert "Traceback" not in process.said, process.said

    def _lines(self) -> int:
        return self._serial.read_bytes().count(b"\n") if self._serial.exists() else 0

    def _until(self, condition: object, what: str) -> None:
        try:
            until(condition, what)  # type: ignore[arg-type]
        except AssertionError as error:
            said = (f"-- {name}: {self.state(name)}\n{p.said}" for name, p in self.processes.items())
            raise AssertionError("\n".join([str(error), *said])) from error

    # -- what is done to them ---------------------------------------------------------------------

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait(DEADLINE)

    def stop(self, name: str) -> None:
        self.processes[name].send(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.processes[name].send(signal.SIGCONT)

    def switch_over(self, name: str) -> SwitchoverRow:
        """The active hands its guest over, and ends."""
        found = self._asked(name)
        assert found, f"{name} does not answer"
        row = switch_over(found[0], lambda text: None)
        assert self.processes[name].wait(DEADLINE) == 0, self.processes[name].said
        return row


@contextmanager
def hosts_in(zygote: Zygote, place: Path) -> Iterator[Hosts]:
    hosts = Hosts(zygote, place)
    try:
        yield hosts
        hosts.check()
    finally:
        hosts.close()
