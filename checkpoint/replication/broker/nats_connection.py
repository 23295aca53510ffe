"""A connection to NATS servers: `nats-py` with this project's exceptions, and with settings for failover."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from checkpoint.errors import LinkError
from checkpoint.replication.broker.lease import clock
from uffdtrack.errors import StorageError, UnsupportedError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

T = TypeVar("T")
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 1.0
"""For so long a server may take for an answer; a request is repeated then."""
_PING_SECONDS = 1
"""A server that answers two of these not is given up."""
_FULL = {10023, 10047, 10077, 10122}
"""err_code of JetStream: no resources, no storage, the stream's limit."""
_WRONG_SEQUENCE = {10071, 10164}


PATIENCE = 30.0
"""Seconds after which a broker that stores nothing is given up. A cluster chooses a leader within ten."""
AGAIN_SECONDS = 0.05
"""Between attempts."""


class NotNowError(Exception):
    """No answer, or nobody who could give it: it is not known whether it was done. Try again."""


class WrongSequenceError(Exception):
    """The last sequence number is another one."""


class NatsConnection:
    """A connection that comes back by itself, to any server of the cluster.

    Attributes:
        url: what was connected to.
        on_return: called when a connection that was lost is there again.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.on_return: Callable[[], None] = lambda: None
        self._client: Client | None = None
        self._trying: Exception | None = None
        self._first = True
        self._returns = 0

    @classmethod
    async def open(cls, url: str, tls: ssl.SSLContext | None = None) -> NatsConnection:
        """Connect, as NATS_USER with NATS_PASSWORD if the environment has them.

        Args:
            url: nats://HOST:PORT

        Raises:
            UnsupportedError: nats-py is not installed.
            LinkError: no server answers there, or it lacks JetStream or headers.
        """
        try:
            import nats.errors
            from nats.aio.client import Client

            from checkpoint.replication.broker.nats_transport import AbruptTransport
        except ImportError as error:
            raise UnsupportedError(
                "nats:// needs the Python package nats-py: pip install 'uffdtrack[nats]'"
            ) from error
        made = cls(url)
        client = Client()
        client._transport = AbruptTransport()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await client.connect(
                    url, error_cb=made._failed, reconnected_cb=made._returned, tls=tls, name="uffdtrack",
                    disconnected_cb=made._disconnected,
                    max_reconnect_attempts=-1, reconnect_time_wait=0, connect_timeout=2,
                    user=os.environ.get("NATS_USER"), password=os.environ.get("NATS_PASSWORD"),
                    ping_interval=_PING_SECONDS, max_outstanding_pings=2, flush_timeout=ANSWER_SECONDS,
                )  # fmt: skip
        except (OSError, TimeoutError, nats.errors.Error) as error:
            with contextlib.suppress(Exception):
                await client.close()
            raise LinkError(f"no NATS server answers at {url}: {error or type(error).__name__}") from error
        made._first = False
        made._client = client
        return made

    async def _failed(self, error: Exception) -> None:
        """The first connection is tried once: raising here ends it."""
        if self._first:
            raise error
        await asyncio.sleep(0.02)  # between attempts to come back

    async def _disconnected(self) -> None:
        """What was to be sent on this connection is not sent on the next one: records may be lost between."""
        self.client._pending.clear()
        self.client._pending_data_size = 0

    async def _returned(self) -> None:
        self._returns = self.client.stats["reconnects"]
        self.on_return()

    @property
    def number(self) -> int:
        """Counts the connections; -1: there is none, or `on_return` was not called for it yet."""
        is_there = self.client.is_connected and self._returns == self.client.stats["reconnects"]
        return self._returns if is_there else -1

    async def __aenter__(self) -> NatsConnection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.flush()  # so that what nobody answers has come, too
        with contextlib.suppress(Exception):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.client.close()

    async def flush(self) -> None:
        """Wait until what was sent has come to the server, or does not come soon.

        The library's own `flush` gives up by cancelling what its reader is to give the answer to. When that
        comes at last, it ends the reader, with a traceback on stderr.
        """
        answered = asyncio.get_running_loop().create_future()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.client._send_ping(answered)
                await asyncio.wait([answered])

    @property
    def closed(self) -> bool:
        """Whether it is closed for good."""
        return self.client.is_closed

    @property
    def client(self) -> Client:
        assert self._client
        return self._client

    @property
    def info(self) -> Mapping[str, Any]:
        """What the server has said of itself when we connected."""
        return self.client._server_info

    @property
    def max_payload(self) -> int:
        """Bytes of a message, with its headers; the server closes the connection for a larger one."""
        return self.client.max_payload

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send without an acknowledgement. Raises: LinkError: the connection is closed for good."""
        await self._guarded(lambda: self.client.publish(subject, data, reply=reply))

    async def subscribe(
        self, subject: str, take: Callable[[Msg], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Have messages taken, in their order. Returns: what ends that."""
        sub = await self._guarded(lambda: self.client.subscribe(subject, cb=take))

        async def end() -> None:
            with contextlib.suppress(Exception):
                await sub.unsubscribe()

        return end

    async def request(
        self,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> Msg:
        """Ask, and wait for the one answer.

        Raises:
            NotNowError: there is none.
            LinkError: the connection is closed for good.
        """
        given = dict(headers) if headers else None
        found: Msg = await self._guarded(
            lambda: self.client.request(subject, data, timeout=seconds, headers=given)
        )
        return found

    async def api(self, what: str, message: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask JetStream. Returns: its answer, with "error" if it says so. Raises: as `request`."""
        answer = await self.request(f"$JS.API.{what}", json.dumps(message).encode() if message else b"")
        return _object(answer.data)

    async def store(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Have a message stored.

        Returns:
            Its number in the stream.

        Raises:
            WrongSequenceError: the headers demand another one.
            StorageError: the stream, or the server's disk, is full.
            NotNowError: there is no answer; it may be stored.
            LinkError: the connection is closed for good.
        """
        answer = _object((await self.request(subject, data, headers)).data)
        error = answer.get("error")
        if not error:
            return int(answer["seq"])
        code, text = error.get("err_code"), error.get("description", "")
        if code in _WRONG_SEQUENCE:
            raise WrongSequenceError(text)
        if code in _FULL or "no space" in text or "insufficient" in text:
            raise StorageError(f"the NATS server at {self.url} has no room left: {text}")
        raise NotNowError(text)

    async def _guarded(self, call: Callable[[], Awaitable[Any]]) -> Any:
        from nats import errors

        task = asyncio.current_task()
        assert task
        before = task.cancelling()
        try:
            return await call()
        except (errors.ConnectionClosedError, errors.ConnectionDrainingError) as error:
            last = self.client.last_error
            raise LinkError(f"the connection to {self.url} is closed{f': {last}' if last else ''}") from error
        except (TimeoutError, errors.Error) as error:
            raise NotNowError(str(error) or type(error).__name__) from error
        finally:
            if task.cancelling() > before:  # asyncio.wait_for of Python 3.11 keeps that from us
                raise asyncio.CancelledError


async def until_done(call: Callable[[], Awaitable[T]], url: str) -> T:
    """Repeat a call while there is no answer. Raises: LinkError: for too long. What the call raises."""
    begun = clock()
    while True:
        try:
            return await call()
        except NotNowError as error:
            if clock() - begun > PATIENCE:
                raise LinkError(
                    f"the NATS server at {url} has done nothing for {PATIENCE:g} s ({error}): see its log; "
                    "its disk may be full, or its cluster has no majority"
                ) from error
        await asyncio.sleep(AGAIN_SECONDS)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise LinkError("the NATS server's answer is malformed") from error
    if not isinstance(found, dict):
        raise LinkError("the NATS server's answer is malformed")
    return found
