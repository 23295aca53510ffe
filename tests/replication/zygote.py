"""Starts the command line from a process that has imported all of it, so that a start takes no time.

`Zygote` is the tests' side. The other side is this file as a program: it reads an order a line, as JSON, and
answers each with a number. What it starts is the real command line, after a fork, with two differences that
an order may ask for: a guest that does not wait so long between two numbers, and hooks (`Hook`).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import inspect
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.helpers import stands, wait_for

ROOT = Path(__file__).parent.parent.parent
MODULES = ("checkpoint.cli.main", "checkpoint.cli.vm", "checkpoint.cli.standby", "tests.replication.faults")
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Hook:
    """A step inside of a process, at which something happens to it.

    Attributes:
        where: MODULE:CLASS.FUNCTION; `after`: its end, not its beginning.
        nth: of its calls, from 1 on; 0: all.
        do: "kill" or "stop", or one of `DEEDS`.
    """

    where: str
    do: str
    nth: int = 1
    after: bool = False


class Started:
    """A process that a zygote has started."""

    def __init__(self, zygote: Zygote, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self._zygote = zygote
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None

    @property
    def said(self) -> str:
        return self.log.read_text()

    def is_stopped(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def send(self, number: signal.Signals) -> None:
        """One that is stopped stands when this returns."""
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
        if number == signal.SIGSTOP:
            wait_for(lambda: self.has_ended() or stands(self.pid), "it stands")

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether it has, or does within so many seconds."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def wait(self, seconds: float) -> int:
        """Its exit code, or -SIGNAL."""
        if self._status is None:
            assert self.has_ended(seconds), f"it does not end:\n{self.said}"
            self._status = self._zygote.order({"wait": self.pid})
            os.close(self._pidfd)
            self._pidfd = -1
        return self._status


class Zygote:
    """Starts processes; they end with it. A context manager."""

    def __init__(self) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.replication.zygote"], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._one = threading.Lock()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def order(self, order: dict[str, Any]) -> int:
        with self._one:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def start(self, words: Sequence[object], log: Path, pace: int = 0, hooks: Sequence[Hook] = ()) -> Started:
        """Args:
        words: of the command line, without its name.
        pace: see `kvmglue.Order`; 0: as it is.
        """
        log.touch()
        told = [dataclasses.asdict(hook) for hook in hooks]
        order = {"words": [str(word) for word in words], "log": str(log), "pace": pace, "hooks": told}
        return Started(self, self.order(order), log)


# -- the other side ---------------------------------------------------------------------------------


def _kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(*_: Any) -> None:
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread goes no step further


DEEDS: dict[str, Callable[..., object]] = {"kill": _kill, "stop": _stop}


def hook(made: Hook) -> None:
    module, _, path = made.where.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    inner, calls = getattr(owner, name), 0

    def at(after: bool, given: tuple[Any, ...]) -> None:
        nonlocal calls
        if after != made.after:
            return
        calls += 1
        if made.nth in (0, calls):
            DEEDS[made.do](*given)

    def around(*given: Any, **named: Any) -> Any:
        at(False, given)
        done = inner(*given, **named)
        at(True, given)
        return done

    async def around_async(*given: Any, **named: Any) -> Any:
        at(False, given)
        done = await inner(*given, **named)
        at(True, given)
        return done

    setattr(owner, name, around_async if inspect.iscoroutinefunction(inner) else around)


def become(order: dict[str, Any]) -> None:
    """Be the command line."""
    from kvmglue import guests
    from tests.replication import faults

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for fd in (1, 2):
        os.dup2(log, fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["pace"]:
        for name, program in guests.PROGRAMS.items():
            guests.PROGRAMS[name] = dataclasses.replace(program, pace=order["pace"])
    faults.prepare()
    for one in order["hooks"]:
        if one["do"] in faults.PATCHES:
            faults.PATCHES[one["do"]]()
        else:
            hook(Hook(**one))
    from checkpoint.cli import main as command

    sys.argv = ["uffdtrack", *order["words"]]
    command.main()


def main() -> None:
    for name in MODULES:
        importlib.import_module(name)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                become(order)
                return
        print(answer, flush=True)


if __name__ == "__main__":
    main()
