"""The active's end of a link: connects, sends what a session takes, and does what the protocol says."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

from checkpoint.errors import LinkError
from checkpoint.replication.active_link import final_message
from checkpoint.replication.attempts import seek
from checkpoint.replication.edge import Edge, first_of
from checkpoint.replication.features import FEATURES, agreed
from checkpoint.replication.held import HeldOutput
from checkpoint.replication.links.channel import Channel
from checkpoint.replication.links.frames import Kind, Message
from checkpoint.replication.links.socket_channel import printable
from checkpoint.replication.outgoing import NO_STANDBY, Outgoing
from checkpoint.replication.protocol.machine import Do, Epoch
from checkpoint.replication.protocol.peer import Active
from checkpoint.replication.protocol.table import ActiveAction, ActiveEvent, ActiveState
from checkpoint.replication.route import Route
from checkpoint.replication.sink import LinkSink

S = ActiveState


class ActiveEdge(Edge):
    """Connects to a standby, again and again.

    Attributes:
        outgoing, sink: what a session sends goes there.
        stopped: why nothing may be released any more, so that the session and the guest have to end; or "".
        is_taken: the standby has said that it runs the guest, which was handed over.
        is_given_up: no epoch is waited for any more; asked in the thread.
        asked: a switchover is due: the session takes its last epoch.
        generation: of the epochs; another one with each base that begins a link.
        far_name: of the standby that was linked last; `why` none is; is_bare: it has nothing.
    """

    def __init__(
        self,
        route: Route,
        about: Mapping[str, Any],
        key: bytes,
        deadline: float,
        wake: Callable[[], None],
        tell: Callable[[str], None],
        output: HeldOutput | None = None,
        features: Collection[str] = FEATURES,
        is_heir: bool = False,
    ) -> None:
        """Args:
        route: to the standby; it is given up when the standby takes over by our will.
        about: for HELLO: name, run, term, kind, keyed, every.
        key: of the digests.
        tell: called in any thread with what a user should know.
        output: what is held until it is acknowledged.
        features: what is used, if the standby has it.
        is_heir: this end has taken the guest over.
        """
        super().__init__(deadline, wake)
        self.is_given_up: Callable[[], bool] = lambda: False
        self._opened, self._linked, self._settled = (threading.Event() for _ in range(3))
        self._route, self._tell, self._told = route, tell, ""
        self.about, self.output, self.features, self.news = about, output, features, asyncio.Event()
        self.outgoing = Outgoing(lambda: self.loop.call_soon_threadsafe(self.news.set), output)
        self.sink = LinkSink(self.outgoing, key)
        self.machine = Active(deadline, self.now(), holds=output is not None, is_heir=is_heir)
        self.stopped = self.generation = self.far_name = self.why = ""
        self._nobody_may = is_heir
        self.asked = self.is_taken = self._final = self.is_bare = False
        self._channel: Channel | None = None
        self._stands = 0.0

    # -- the session's thread ---------------------------------------------------------------------

    @property
    def may_release(self) -> bool:
        """Whether output that is acknowledged may go out. It is asked right before."""
        return not self.stopped and self.machine.may_release and self._route.may_release()

    @property
    def is_unprotected(self) -> bool:
        """Whether nobody else can come to run the guest, see `Active`. It ends before an epoch is sent."""
        return self.machine.unprotected and self._nobody_may

    def await_open(self) -> None:
        """Wait until we are the active. Raises: UffdtrackError: we cannot be; see `Route.open`."""
        self._opened.wait()
        if self.failure:
            raise self.failure

    def await_link(self, timeout: float) -> bool:
        """Wait until a standby was linked for the first time; returns whether one was."""
        return self._linked.wait(timeout)

    def ask(self) -> str:
        """A user wants a switchover; returns why there can be none, or ""."""
        return self.call(lambda: self.on(ActiveEvent.SWITCHOVER))

    def final(self) -> None:
        """The next epoch is the last one: the guest stands from then on."""
        self._settled.clear()
        self._stands = self.now()
        self.call(lambda: setattr(self, "_final", True))

    def await_handover(self, timeout: float) -> None:
        """Wait until the standby runs the guest, or it is ours again."""
        self._settled.wait(timeout)

    def take_back(self) -> None:
        """The standby has not answered to the last epoch: end the link, so that the guest runs here again."""

        async def take_back() -> None:
            if self._channel and self.machine.state is S.HANDING:
                await self._channel.close("the guest is not handed over: no answer came in time")

        self.do(take_back())

    def is_linked(self) -> bool:
        return self._channel is not None

    @property
    def is_resigned(self) -> bool:
        """Whether the guest is the standby's, and does not run here again. It may not run there yet."""
        return self.machine.state is S.RESIGNED or self.is_taken

    def end(self, why: str) -> bool:
        """The session has ended, and all output has left; returns whether the standby knows.

        All that was sent is acknowledged; if output is held, the `final` epoch, too.
        """

        async def end() -> bool:
            done = [do.action for do in self.machine.on(ActiveEvent.GUEST_ENDED, self.now())]
            if ActiveAction.SEND_BYE in done and self._channel:
                with contextlib.suppress(LinkError):
                    await self._channel.send(Message(Kind.BYE, {"why": why, **self.told()}))
                    return True
            return False

        return self.do(end())

    # -- the thread of the link -------------------------------------------------------------------

    async def work(self) -> None:
        try:
            await first_of(self._route.open(self._lost, self.sink.want_base), self.wait_end())
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self._opened.set()
        try:
            await first_of(self.wait_end(), self._tick(), seek(self, self._route))
        finally:
            self.outgoing.unlink(NO_STANDBY)
            await self._route.close()

    def _lost(self) -> None:
        """Another one is active. When we have resigned, that is no answer: who runs the guest says TAKEN."""
        if self.machine.state not in (S.RESIGNED, S.ENDED):
            self.on(ActiveEvent.FENCE_LOST)

    def failed(self, error: Exception) -> None:
        """There is no link, or none any more."""
        self.why = str(error)
        held = "; output is held" if self.output and self._channel and not self.is_unprotected else ""
        self._tell_once(self.why + held)

    def greeted(self, channel: Channel, hello: Mapping[str, Any]) -> None:
        """A standby has said HELLO."""
        self._channel, self._final = channel, False
        self.hears(hello)
        self.heard()
        tip = hello.get("tip")
        digest = str(tip.get("digest", "")) if isinstance(tip, dict) else ""
        self.is_bare = not digest
        self.on(ActiveEvent.LINKED, digest)
        self.far_name = printable(hello.get("name", ""))
        if self.machine.state in (S.GREETED, S.FOLLOWED) and not self.is_given_up():
            self.outgoing.link(agreed(hello) & set(self.features))
            self._tell_once(f"the standby {self.far_name} is linked")
            self._linked.set()
        self.wake()

    def unlinked(self) -> None:
        """A link has ended, or could not be made."""
        self._channel, self.is_bare = None, False
        if self.machine.state is not S.ENDED:
            self.on(ActiveEvent.UNLINKED)
        self.wake()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.beat_seconds)
            if self.is_given_up():
                self.outgoing.unlink("this end has to end")
            if self.machine.may_release:
                self._route.look()
            if self._channel and self.machine.state is not S.ENDED:
                self._carry_out(self.machine.tick(self.now()))
            if self._channel:
                beat = {"taken": self.outgoing.begun, "sent": self.outgoing.sent, **self.told()}
                self.spawn(self.say(self._channel, Message(Kind.BEAT, beat)))

    def told(self) -> dict[str, Any]:
        """What an END, BEAT or GO says beside its own."""
        released = {"released": list(self.output.released)} if self.output else {}
        return {"generation": self.generation, **released}

    # -- the machine ------------------------------------------------------------------------------

    def on(self, event: ActiveEvent, digest: str = "") -> str:
        """Take an event; returns what is to be said of it. Raises: LinkError: the link has to end."""
        before = self.machine.state
        self.is_taken |= event is ActiveEvent.STAND_IN and before is S.RESIGNED
        done = self.machine.on(event, self.now(), digest=digest)
        self.note_state(before, self.machine.state)
        return self._carry_out(done, event)

    def take(self, epoch: Epoch) -> list[Do[ActiveAction]]:
        """An epoch is whole; returns what is to be sent of that."""
        final, self._final = self._final, False
        done = self.machine.on(ActiveEvent.TAKEN, self.now(), epoch=epoch, final=final)
        sent = [do for do in done if do.action is not ActiveAction.HOLD]
        if self._nobody_may and sent != done:
            self._nobody_may = False
            self._tell_once(f"the standby {self.far_name} gets the guest; its output is held from now on")
        return sent

    def heard(self) -> None:
        self.machine.heard(self.now())

    def _carry_out(self, actions: list[Do[ActiveAction]], event: ActiveEvent | None = None) -> str:
        """Returns what is to be said of it, or ""."""
        a, said = ActiveAction, ""
        for do in actions:
            match do.action:
                case a.FOLLOW if do.epoch:
                    self.sink.begin_from(do.epoch.digest)
                case a.REBASE:
                    self.generation = secrets.token_hex(8)
                    self._route.begin(self.generation)
                    self.sink.begin_from("")
                case a.LET_OUT:  # behind that
                    self._nobody_may = self._route.nobody_may()
                case a.RELEASE if do.epoch and event is ActiveEvent.ACKED:
                    self.outgoing.acknowledge(do.epoch.digest)
                case a.TAKE_BACK:
                    self._final = False
                    self.outgoing.unlink(NO_STANDBY)
                case a.HAND_OVER:
                    self.asked = True
                    self.wake()
                case a.TAKE_GUEST_BACK:
                    self._settled.set()
                    self.wake()
                case a.RESIGN:
                    if self.output:
                        self.output.resign()
                case a.SEND_GO if self._channel:
                    self.spawn(self._go(self._channel))
                case a.SEND_FINAL if self._channel and do.epoch:
                    self.spawn(self.say(self._channel, final_message(do.epoch)))
                case a.STOP:
                    self._stop(do.reason)
                case a.CLOSE if self._channel:
                    self.spawn(self._channel.close("nothing was heard for too long"))
                case a.REFUSE:
                    raise LinkError(do.reason)
                case a.SAY_MAY_NOT:
                    said = do.reason
        return said

    async def _go(self, channel: Channel) -> None:
        await self._route.resign()
        stood_us = round((self.now() - self._stands) * 1e6)
        await self.say(channel, Message(Kind.GO, {**self.told(), "stood_us": stood_us}))

    def _tell_once(self, text: str) -> None:
        if text != self._told and not self.stopped:
            self._told = text
            self._tell(text)

    def _stop(self, why: str) -> None:
        self.stopped = self._route.why_lost() or why
        if self.output:
            self.output.stop()
        self.outgoing.unlink(why)
        self._settled.set()
        self.wake()
