"""One injection: a real active and a real standby, a failure at a step, and what the outside has seen then.

A trial goes like this: both start; the failure comes at its step; what it holds up is let go on after a
while; a standby that is dead is replaced; the guest has to go on for the outside. Then the active is killed,
if it lives, and the guest has to go on at the standby. At the end all that was seen is checked, all chains
are verified, and whoever still runs ends in good order.
"""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from checkpoint.chain import Chain
from tests.helpers import DEADLINE
from tests.replication.faults import TIP
from tests.replication.outside import OutsideError
from tests.replication.packets import Packets
from tests.replication.plan import CHECK_PACE, DEADLINE_OF_LINK, GUESTS, PACE, Plan
from tests.replication.relay import Relay, Trigger
from tests.replication.zygote import Hook, Started, Zygote

ASK_EVERY = 0.2
MORE = 4
"""So many numbers the guest has to print, or send, to have gone on."""


Deed = Callable[[Any], None]
"""Something that is done to a trial."""


class StallError(AssertionError):
    """It does not go on."""


class Trial:
    """The processes of one injection, in a directory of their own. A context manager.

    Attributes:
        patience: seconds for whatever has to come.
        deadline: seconds, of both sides.
    """

    patience = DEADLINE
    deadline = DEADLINE_OF_LINK

    def __init__(self, zygote: Zygote, plan: Plan, disk: Path | None = None) -> None:
        """Args: disk: a small one for the chain of the first standby, which can be full."""
        self.plan = plan
        self.zygote = zygote
        self._disk = disk
        self.standbys: list[Started] = []
        self.chains: list[Path] = []
        self.active: Started | None = None
        self._asked = 0.0
        self.fired: Callable[[], bool] | None = None

    def __enter__(self) -> Trial:
        with ExitStack() as stack:
            self.place = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="uffdtrack-test-"))
            stack.callback(shutil.rmtree, self.place)
            self.outside = GUESTS[self.plan.guest](self.place)
            stack.callback(self.outside.close)
            self.join(stack)
            stack.callback(self._kill_all)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.said = self.logs()
        with self._open:
            pass

    def _kill_all(self) -> None:
        for process in [*self.standbys, *filter(None, [self.active])]:
            process.kill()
            process.wait(DEADLINE)

    # -- who takes part, and how they reach each other --------------------------------------------

    def join(self, stack: ExitStack) -> None:
        self.relay = stack.enter_context(Relay(self.place / "relay", self.place / "standby"))

    def standby_words(self) -> list[object]:
        return ["--listen", f"unix:{self.place / 'standby'}", "--fence", self._fence]

    def note_standby(self) -> None:
        """One has started, and has nothing."""
        self.relay.whole = 0

    def active_words(self) -> list[object]:
        words: list[object] = ["--replicate", f"unix:{self.place / 'relay'}"]
        return words if self.plan.fence else [*words, "--fence", self._fence]

    def hooks_of(self, role: int) -> Sequence[Hook]:
        return self.plan.hooks[role]

    def set_trigger(self, do: Callable[[], None]) -> None:
        """Do that at the plan's message."""
        if self.plan.kind:
            trigger = Trigger(self.plan.kind, self.plan.when, self.plan.nth, do)
            self.relay.trigger, self.fired = trigger, trigger.fired.is_set

    @property
    def standby(self) -> Started:
        return self.standbys[-1]

    def start_standby(self) -> None:
        n = len(self.standbys)
        chain = (self._disk or self.place) / "c0" if not n else self.place / f"c{n}"
        words = ["standby", "-o", chain, *self.standby_words()]
        hooks = self.hooks_of(1) if not n else ()
        self.standbys.append(self._start(1, words, self.place / f"standby{n}.log", hooks=hooks))
        self.chains.append(chain)
        self.note_standby()
        until(lambda: self.listens() or self.standby.has_ended(), "it listens", self)

    def start_active(self) -> None:
        guest, plan = self.plan.guest.split()[0], self.plan
        words = ["vm", "run", guest, "--ram", "1MiB", "--every", plan.every, "--until", plan.until]
        words += self.active_words()
        pace = CHECK_PACE if guest == "check" else 1 if guest == "echo" else PACE
        self.active = self._start(0, words, self.place / "active.log", pace, self.hooks_of(0))
        (self.place / "active.pid").write_text(str(self.active.pid))

    @property
    def _fence(self) -> str:
        if not self.plan.fence:
            return f"lock:{self.place / 'lock'}"
        return f"ACTIVE=$(cat {self.place / 'active.pid'}); {self.plan.fence}"

    def _start(
        self, role: int, words: list[object], log: Path, pace: int = 0, hooks: Sequence[Hook] = ()
    ) -> Started:
        words += [*self.outside.options[role], "--deadline", f"{self.deadline * 1e3:g}ms"]
        return self.zygote.start(words, log, pace, hooks)

    def deeds(self) -> tuple[Deed, Deed]:
        """What is done at the step, and when it has lasted."""
        from tests.replication.failures import FAILURES

        return FAILURES[self.plan.failure]

    # -- the course -------------------------------------------------------------------------------

    def run(self) -> Trial:
        """All of it. Raises: AssertionError: something is wrong; with what both have said."""
        try:
            self.begin()
            self.fail()
            self.recover()
            self.move()
            self.check()
        except AssertionError as error:
            raise type(error)(f"{error}\n{self.plan}\n{self.logs()}") from error
        return self

    def begin(self) -> None:
        """Both run, and the failure is set."""
        inject, self._let_go = self.deeds()
        self.set_trigger(lambda: inject(self))
        self.start_standby()
        self.start_active()
        if self.plan.switch:
            self.await_progress(0)

    def fail(self) -> None:
        """Wait until the failure has come, and for a while; then let go on what it has held up."""
        if self.fired:
            fired = self.fired
            until(lambda: fired() or self.was_fenced() or self.ask_again(), "the step comes", self)
        else:
            hooks = zip((self.active, self.standby), self.plan.hooks, strict=True)
            doomed = [p for p, of_it in hooks if p and any(one.where for one in of_it)]
            until(lambda: all(p.has_ended() or p.is_stopped() for p in doomed), "the step comes", self)
        time.sleep(self.plan.hold)
        self.let_go()

    def let_go(self) -> None:
        self._let_go(self)

    def ask_again(self) -> bool:
        """Ask for a switchover now and then, if that is the plan: there may be no link just then."""
        assert self.active
        if self.plan.switch and time.monotonic() > self._asked + ASK_EVERY:
            self._asked = time.monotonic()
            self.active.send(signal.SIGUSR2)
        return False

    def recover(self) -> None:
        """Whoever is left goes on."""
        if not self.plan.until:
            if self.standby.has_ended(0.001) and not self.is_active_over():
                self.start_standby()
            self.await_progress(self.outside.count())
            if self._is_heir():  # its output says nothing of its standby
                was = self.relay.acknowledged
                over = self.active.has_ended if self.active else bool
                until(lambda: self.relay.acknowledged > was or over(), "it is protected", self)

    def move(self) -> None:
        """The guest goes on at the standby, if it is not there yet."""
        if not self.plan.until:
            assert self.active
            self.active.kill()
            until(lambda: self.has_moved() or self.is_guest_lost(), "the standby takes over", self)
            self.await_progress(self.outside.count())

    def check(self) -> None:
        """What the outside has seen, the chains, and how all have ended."""
        assert self.active
        if not self.plan.until:
            self.standby.send(signal.SIGINT)
        statuses = [one.wait(self.patience) for one in (self.active, *self.standbys)]
        assert not self.crashed(), "a process has crashed, or the guest is torn"
        self.outside.check(self.known(), self.tip())
        if self.outside.count() and not (self._is_heir() or self.was_acknowledged() or self.has_moved()):
            raise OutsideError("something was released, and nothing was acknowledged")
        if self.plan.until and self.outside.count() != self.plan.until:
            raise OutsideError(f"the guest has ended with {self.outside.count()}")
        assert statuses[-1] in (0, -signal.SIGKILL), statuses
        for chain in self.chains:
            if list(chain.glob("*.core")):
                Chain(chain).verify(b"")
        assert statuses[-1] or not list(self.chains[-1].glob(".epoch*"))

    # -- what is so -------------------------------------------------------------------------------

    def _is_heir(self) -> bool:
        return any(hook.do in ("heir", "hold-late") for hook in self.plan.hooks[0])

    def has_moved(self) -> bool:
        return TIP in self.standby.said

    def was_fenced(self) -> bool:
        """Whether the standby has killed the active: it is enough that this host was busy for a moment."""
        assert self.active
        return bool(self.plan.fence) and self.active.has_ended()

    def listens(self) -> bool:
        return "listening" in self.standby.said

    def is_active_over(self) -> bool:
        """Whether it has ended, or has handed the guest over."""
        assert self.active
        return self.active.has_ended() or "handed over" in self.active.said

    def is_guest_lost(self) -> bool:
        """Whether no process may run it: the active has ended, and the standby has no whole epoch."""
        assert self.active
        if not self.active.has_ended():
            return False
        return self.standby.has_ended() or not self.relay.whole

    def await_progress(self, since: int) -> None:
        def goes_on() -> bool:
            return self.outside.count() >= since + MORE or self.is_guest_lost()

        until(goes_on, f"the guest goes on behind {since}", self)

    def crashed(self) -> bool:
        for process in [*filter(None, [self.active]), *self.standbys]:
            if "Traceback" in process.said or "ended with code" in process.said:
                return process.has_ended(DEADLINE)
        return False

    def was_acknowledged(self) -> bool:
        return self.relay.acknowledged > 0

    def known(self) -> int:
        """What of the output the standby knew to be released."""
        return self.relay.known[isinstance(self.outside, Packets)]

    def tip(self) -> int | None:
        """Up to where the standby had the output when it took over."""
        found = re.search(f"{TIP} (\\d+) (\\d+) (\\d+) (\\d+)", self.standby.said)
        return int(found[3 + isinstance(self.outside, Packets)]) if found else None

    def logs(self) -> str:
        said = [
            (p.log.name, p.pid, p.has_ended(), p.said) for p in (*filter(None, [self.active]), *self.standbys)
        ]
        return "\n".join(f"-- {name} ({pid}{', ended' * ended})\n{text}" for name, pid, ended, text in said)


def until(condition: Callable[[], bool], what: str, trial: Trial) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + trial.patience
    while not trial.outside.wait(condition, 0.002):
        assert not trial.crashed(), "a process has crashed, or the guest is torn"
        if time.monotonic() > deadline:
            raise StallError(f"not within {trial.patience} s: {what} ({trial.outside.count()})")
