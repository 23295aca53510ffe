"""Replicate a guest that counts, kill the process that runs it, and watch the standby go on with the count.

Each command that is started is printed; run them by hand in the same way.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

UFFDTRACK = Path(sys.executable).with_name("uffdtrack")
BEFORE, AFTER = 15, 30
"""The active is killed after so many numbers; the demonstration ends after so many."""
SECONDS = 60.0
"""So long anything may take."""


class Running:
    """A command of ours, whose messages are shown."""

    def __init__(self, who: str, *words: object) -> None:
        argv = [str(UFFDTRACK), *map(str, words)]
        print(f"\n$ {shlex.join(['uffdtrack', *argv[1:]])} &", flush=True)
        self.who = who
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        self.said: list[str] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            print(f"{self.who:>8} | {line}", end="", flush=True)
            with self._changed:
                self.said.append(line)
                self._changed.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it says something; returns that."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.said if (match := re.search(pattern, line))), None)

        with self._changed:
            match = self._changed.wait_for(found, SECONDS)
        if not match:
            sys.exit(f"{self.who} did not say {pattern!r}")
        return match

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


def numbers(serial: Path) -> list[int]:
    """What has come out of the serial port: whole lines."""
    text = serial.read_bytes() if serial.exists() else b""
    return [int(line) for line in text[: text.rfind(b"\n") + 1].split()]


def watch(serial: Path, who: str, shown: int, upto: int) -> int:
    """Show what comes out of the serial port; returns how many numbers were shown by then."""
    deadline = time.monotonic() + SECONDS
    while shown < upto:
        if time.monotonic() > deadline:
            sys.exit("the count does not go on")
        found = numbers(serial)
        for number in found[shown:]:
            print(f"  serial | {number:4}   ({who})", flush=True)
        shown = len(found)
        time.sleep(0.01)
    return shown


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="failover-") as place:
        os.chdir(place)
        serial = Path("serial.txt")
        subprocess.run([UFFDTRACK, "keys", "keys"], check=True)
        common = ("--tls", "keys", "--fence", "lock:lock", "--serial", serial)
        standby = Running("standby", "standby", "--listen", "tls://127.0.0.1:0", "-o", "chain", *common)
        address = standby.wait_for(r"listening at (\S+)")[1]
        active = Running("active", "vm", "run", "count", "--replicate", address, "--every", "10ms", *common)
        try:
            shown = watch(serial, "active", 0, BEFORE)
            print("\n$ kill -9 the active", flush=True)
            killed = time.monotonic()
            active.end(signal.SIGKILL)
            before = len(numbers(serial))
            shown = watch(serial, "active", shown, before)
            shown = watch(serial, "standby", shown, before + 1)
            print(f"\n{(time.monotonic() - killed) * 1e3:.0f} ms from kill -9 to the next number", flush=True)
            watch(serial, "standby", shown, AFTER)
        finally:
            active.process.kill()
            status = standby.end(signal.SIGINT)
        found = numbers(serial)
        if found != list(range(1, len(found) + 1)):
            sys.exit(f"the count has a gap or a repeat: {found}")
        print(f"\n1 to {len(found)}: no gap, no repeat (the standby has ended with {status})")


if __name__ == "__main__":
    main()
