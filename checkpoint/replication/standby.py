"""The standby's end of a link: takes what an active sends, and does what the protocol says."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

from checkpoint.errors import ImageError, LinkError
from checkpoint.replication.edge import Edge, first_of
from checkpoint.replication.following import Following
from checkpoint.replication.greeting import run_of, standby_hello, text_of, why_refused
from checkpoint.replication.heard import Heard
from checkpoint.replication.intake import take_epoch
from checkpoint.replication.links.channel import Channel
from checkpoint.replication.links.frames import Kind, Message
from checkpoint.replication.process_watch import ProcessWatch
from checkpoint.replication.protocol.machine import Do, Epoch, Told
from checkpoint.replication.protocol.peer import Standby
from checkpoint.replication.protocol.table import StandbyAction, StandbyEvent, StandbyState
from checkpoint.replication.replica import Replica
from uffdtrack.errors import UffdtrackError

FOLLOWS = (StandbyState.EMPTY, StandbyState.FOLLOWING)


class StandbyEdge(Edge):
    """Takes an active's epochs into a replica, until it is time to take over.

    Attributes:
        replica: what has come. The owner may use it when `outcome` is there.
        heard: what the active has said.
        outcome: "takeover", "over" (there is nothing to take over), or "" while it follows.
        why: for the outcome, for people.
        tell: called in the thread with what a user should know.
        name: of this host, for people.
    """

    def __init__(
        self,
        following: Following,
        name: str,
        replica: Replica,
        deadline: float,
        wake: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        """Args:
        following: how actives reach us. On this host the end of the active's process counts, too.
        """
        super().__init__(deadline, wake)
        self.replica = replica
        self.outcome = self.why = ""
        self.tell = tell
        self.machine = Standby(deadline, self.now())
        self.heard = Heard()
        self.following = following
        self.name = name
        self._channel: Channel | None = None
        self._said = self._not_stored = ""
        self._process = ProcessWatch(self.loop, self._process_ended)
        self._busy = asyncio.Lock()
        self._runs, self._ran = asyncio.Event(), threading.Event()
        self._handed_at = 0.0

    # -- the owner's thread -----------------------------------------------------------------------

    @property
    def peer(self) -> str | None:
        """The other end, for people, while there is a link."""
        channel = self._channel
        return (self.heard.host or channel.peer) if channel else None

    def runs(self) -> None:
        """The guest runs here now."""
        if self._handed_at:
            self.heard.stood_us += round((self.now() - self._handed_at) * 1e6)
        self._ran.set()
        self.loop.call_soon_threadsafe(self._runs.set)

    def await_run(self, timeout: float) -> bool:
        """Wait until the guest runs here."""
        return self._ran.wait(timeout)

    def ask(self) -> str:
        """A user wants a switchover; returns why there can be none, or ""."""

        async def ask() -> str:
            return self.following.why_unheard() or await self._on(StandbyEvent.SWITCHOVER)

        return self.do(ask())

    # -- the thread of the link -------------------------------------------------------------------

    async def work(self) -> None:
        serving = self.following.serve(self._accept, self.tell)
        try:
            await first_of(self.wait_end(), serving, self._tick(), self._beat())
        finally:
            self._process.watch(None)

    async def _tick(self) -> None:
        last_tick = self.now()
        while True:
            every, left = self.beat_seconds, self.machine.silent_at - self.now()
            await asyncio.sleep(min(every, left) if left > 0 else every)  # when it is silent, at once
            async with self._busy:
                last_tick, before = self.now(), last_tick
                if last_tick > before + self.deadline / 2:
                    self.machine.heard(last_tick)  # it is we who did not run, or did not listen
                if self._channel and self._channel.heard_at + self.deadline > self.machine.silent_at:
                    self.machine.heard(self._channel.heard_at)  # a part of a message
                await self._carry_out(self.machine.tick(self.now()))

    async def _beat(self) -> None:
        """Whatever else is being done: a base takes its time, and so may the disk."""
        while True:
            await asyncio.sleep(self.beat_seconds)
            last, error = self.replica.store.last, self.replica.store.error
            if error and error != self._not_stored:
                self.tell(f"epochs are not stored until the next base, only in memory: {error}")
            self._not_stored = error
            if self._channel:
                beat = {"whole": self.machine.whole, "stored": last}
                await self.say(self._channel, Message(Kind.BEAT, beat))

    async def _accept(self, channel: Channel) -> None:
        try:
            hello = (await channel.receive()).meta
            async with self._busy:
                await self._greet(channel, hello)
            while True:
                message = await channel.receive()
                async with self._busy:
                    if self._channel is not channel:
                        raise LinkError("another link has taken the place of this one")
                    await self._take(message)
                    self.machine.heard(self.now())  # after it: a base takes its time
        except (LinkError, ImageError, OSError) as error:
            await self._lose(channel, error)
        except Exception as error:
            self._end("failed", str(error), error)

    async def _greet(self, channel: Channel, hello: Mapping[str, Any]) -> None:
        if hello.get("role") != "active":
            raise LinkError(f"{channel.peer} is no active")
        actions = [do.action for do in self._told(StandbyEvent.LINKED, **run_of(hello))]
        if StandbyAction.SEND_TAKEN in actions:
            await channel.send(Message(Kind.HELLO, {**self._hello(), "runs": True}), Message(Kind.TAKEN))
            raise LinkError("this standby runs the guest")
        if StandbyAction.SEND_HELLO not in actions:
            raise LinkError(why_refused(self.machine.state))
        self.machine.heard(self.now())  # one that is refused is nobody's word
        old, self._channel = self._channel, channel
        if old:
            self.spawn(old.close("the active has linked anew"))
        self.replica.drop_partial()
        self.heard.note(hello)
        self.hears(hello)
        self._process.watch(channel.peer_pidfd)
        name = self.heard.name or "an active"
        if StandbyAction.FORGET in actions:  # whether this link lasts or not
            self.tell(f"another host has taken over {name}; what is here is replaced by its base")
        await channel.send(Message(Kind.HELLO, self._hello()))
        self.tell(text_of(name, self.machine.whole))
        self._said = ""

    def _hello(self) -> dict[str, Any]:
        return standby_hello(self.name, self.deadline, None if self.replica.needs_base else self.machine.tip)

    async def _lose(self, channel: Channel, error: Exception) -> None:
        """A link has ended, or is ended by us for what came on it."""
        with contextlib.suppress(LinkError):
            await channel.close(str(error))
        if self._channel is not channel:
            return
        async with self._busy:
            self._channel = None
            if not self.outcome:
                self.tell(f"the link has ended: {error}")
            await self._on(StandbyEvent.UNLINKED)

    def _process_ended(self) -> None:
        self.spawn(self._note_death())

    async def _note_death(self) -> None:
        """What the active had sent before its end comes first."""
        until = self.now() + self.deadline
        while self._channel and self.now() < until:
            await asyncio.sleep(0.001)
        async with self._busy:
            await self._on(StandbyEvent.ACTIVE_DEAD)

    async def _take(self, message: Message) -> None:
        meta = message.meta
        if message.kind not in (Kind.BEGIN, Kind.PART):
            self.heard.note(meta)
        if "released" in meta:
            self.machine.noted(self.heard.released)
            self.replica.forget_output(self.heard.released)
        match message.kind:
            case Kind.BEGIN:
                self.replica.begin(meta)
            case Kind.PART:
                self.replica.part(meta, message.body)
            case Kind.END:
                whole = lambda epoch: self._on(StandbyEvent.EPOCH, epoch=epoch)  # noqa: E731
                await take_epoch(self.replica, meta, self._fits, whole)
                try:
                    self.following.note(str(meta.get("generation", "")))
                except LinkError as error:  # better heard now than when the active is lost
                    self.tell(f"warning: this standby could not take over: {error}")
            case Kind.FINAL:
                self.following.check()
                await self._on(StandbyEvent.FINAL, digest=str(meta.get("digest", "")))
            case Kind.GO:
                self._handed_at = self.now()
                if self.machine.is_ready(Told()) and not await self.following.take():
                    raise LinkError("the guest was handed over, and another one may run it")
                await self._on(StandbyEvent.GO)
            case Kind.BYE:
                await self._on(StandbyEvent.BYE)
                if self.machine.state is StandbyState.OVER:
                    self._end("over", str(meta.get("why", "")))
            case _ if message.kind is not Kind.BEAT:
                raise LinkError(f"an active sends no {message.kind.name}")

    def _fits(self, epoch: Epoch) -> bool:
        return self.machine.state in FOLLOWS and self.machine.is_fits(Told(epoch=epoch))

    # -- the machine ------------------------------------------------------------------------------

    async def _on(self, event: StandbyEvent, **told: Any) -> str:
        return await self._carry_out(self._told(event, **told), event)

    def _told(self, event: StandbyEvent, **told: Any) -> list[Do[StandbyAction]]:
        before = self.machine.state
        done = self.machine.on(event, self.now(), **told)
        self.note_state(before, self.machine.state)
        return done

    async def _carry_out(self, actions: list[Do[StandbyAction]], event: StandbyEvent | None = None) -> str:
        """Returns what is to be said of it, or ""."""
        a = StandbyAction
        said = ""
        for do in actions:
            match do.action:
                case a.DROP_PARTIAL:
                    self.replica.drop_partial()
                case a.SEND_ACK | a.SEND_READY if do.epoch and self._channel:
                    kind = Kind.ACK if do.action is a.SEND_ACK else Kind.READY
                    what = {"epoch": do.epoch.number, "digest": do.epoch.digest}
                    await self.say(self._channel, Message(kind, what))
                    if do.action is a.SEND_READY:
                        self.replica.prepare()  # while the active gives its guest away
                case a.SEND_ASK if self._channel:
                    await self.say(self._channel, Message(Kind.ASK))
                case a.SEND_TAKEN if self._channel:
                    self.spawn(self._say_taken(self._channel))
                case a.CLOSE if self._channel:
                    channel, self._channel = self._channel, None
                    self.tell(f"nothing was heard from the active for {self.deadline:g} s")
                    self.spawn(channel.close("nothing was heard for too long"))
                case a.RUN_FENCE:
                    self.spawn(self._ask_fence())
                case a.TAKE_OVER:
                    self._end("takeover", "the active has gone" if not self._channel else "switchover")
                case a.REFUSE:
                    raise LinkError(do.reason)
                case a.SAY_MAY_NOT:
                    said = do.reason
                    why = f" ({self.following.why_not})" if event is StandbyEvent.NOT_FENCED else ""
                    self._tell_once(f"may not take over: {do.reason}{why}")
        return said

    async def _say_taken(self, channel: Channel) -> None:
        await self._runs.wait()
        await self.say(channel, Message(Kind.TAKEN))

    async def _ask_fence(self) -> None:
        fenced: bool | None = False
        try:
            fenced = await self.following.fence()
        except (UffdtrackError, OSError) as error:
            self._tell_once(f"the fence has failed: {error}")
        async with self._busy:
            await self._on(StandbyEvent.FENCED if fenced else StandbyEvent.NOT_FENCED)

    def _tell_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.tell(text)

    def _end(self, outcome: str, why: str, failure: Exception | None = None) -> None:
        if not self.outcome:
            self.outcome, self.why, self.failure = outcome, why, failure
            self.wake()
