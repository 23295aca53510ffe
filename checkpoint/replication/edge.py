"""What the edges of both roles have in common: a thread with an event loop, whose alone the machine is."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from checkpoint.errors import LinkError
from checkpoint.replication.links.channel import Channel
from checkpoint.replication.links.frames import Message
from checkpoint.replication.loop import new_loop
from uffdtrack.closing import Closing
from uffdtrack.errors import UffdtrackError

T = TypeVar("T")
BEATS = 10
"""So many heartbeats are sent within the deadline after which silence counts."""


LOOK = 0.5
"""Seconds between two looks at whether the thread lives."""
SHORTEST_BEAT = 0.005
"""Seconds."""
CANCEL_AGAIN = 0.1
"""Seconds."""


async def first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Run several at the same time, until one of them ends. Raises: as that one."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end_all(tasks)


async def end_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended: one may lose that (asyncio.wait_for of Python 3.11 does)."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=CANCEL_AGAIN)
        for task in ended:
            if not task.cancelled():
                task.exception()  # it is known here


class Edge(Closing):
    """Runs `work` in a thread of its own.

    Attributes:
        deadline: seconds without a word after which the other side counts as silent.
        failure: what has ended the thread, if something has.
        beat_seconds: after so long the other side gets a word.
        since_ns: since when the machine is in its state, on the host's clock.
    """

    def __init__(self, deadline: float, wake: Callable[[], None]) -> None:
        """Args: wake: called in the thread when the owner should look at what has changed."""
        self.deadline = deadline
        self.beat_seconds = deadline / BEATS
        self.wake = wake
        self.failure: BaseException | None = None
        self.since_ns = time.time_ns()
        self.loop = new_loop()
        self._ending = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def work(self) -> None:
        """Serve until `wait_end` returns."""
        raise NotImplementedError

    def note_state(self, before: object, now: object) -> None:
        """The machine has taken an event."""
        if before is not now:
            self.since_ns = time.time_ns()

    async def wait_end(self) -> None:
        await self._ending.wait()

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the thread and wait for what it returns."""

        async def call() -> T:
            return function()

        return self.do(call())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread and wait for what it returns. Raises: LinkError: it has ended."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError as error:  # the loop is closed
            work.close()
            raise LinkError("the link has ended") from error
        while self._thread.is_alive():
            with contextlib.suppress(concurrent.futures.TimeoutError):
                return future.result(LOOK)
        work.close()
        raise LinkError(f"the link has ended: {self.failure}")

    def close(self) -> None:
        """End the thread. Idempotent."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._ending.set)
            self._thread.join()
        if not self.loop.is_closed():
            self.loop.close()

    def hears(self, hello: Mapping[str, Any]) -> None:
        """Take from the other side's HELLO how often it wants to hear of us."""
        theirs = hello.get("deadline")
        if isinstance(theirs, (int, float)) and theirs > 0:
            self.beat_seconds = max(min(self.deadline, theirs) / BEATS, SHORTEST_BEAT)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside all else. In the thread."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def say(self, channel: Channel, *messages: Message) -> None:
        """Send messages, if there is still somebody. Why not, `receive` says."""
        with contextlib.suppress(UffdtrackError):
            await channel.send(*messages)

    @staticmethod
    def now() -> float:
        return time.monotonic()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self.work())
        except BaseException as error:
            self.failure = error
        finally:
            self.loop.run_until_complete(end_all(asyncio.all_tasks(self.loop)))
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.wake()
