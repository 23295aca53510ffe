"""Writes the records of who holds the lease, one at a time, and renews it in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from checkpoint.errors import LeaseError, LinkError
from checkpoint.replication.broker.lease import Holder, State, clock
from checkpoint.replication.broker.nats_connection import NotNowError, WrongSequenceError, until_done
from checkpoint.replication.broker.stream import Batch, Stream
from uffdtrack.errors import StorageError

_UNKNOWN = -2
"""The number of no connection: whatever there is, our sequence may not be the last."""


class Head:
    """The end of the stream of records, as its one writer has it.

    Attributes:
        holder: the lease; ask `holder.may_release(clock())` before each piece of output.
        stored: digest of the last epoch that is in a record up to `holder.sequence`.
        on_lost: called once, when it turns out that somebody else has the lease.
    """

    def __init__(self, stream: Stream, holder: Holder) -> None:
        self.holder = holder
        self.on_lost: Callable[[], None] = lambda: None
        self._stream = stream
        self._lock = asyncio.Lock()
        self._number = stream.connection.number  # of the connection on which our sequence was the last
        self._renewing: asyncio.Task[None] | None = None
        self.stored = ""
        self._carried: tuple[Batch | None, bytes] = None, b""  # by what is pending
        self._epoch = ""

    def go_on(self) -> None:
        """Renew a lease that another connection of this process has held until now, and holds no more.

        What that has sent last may be stored or not, so the last record is looked at before the next is
        written, as behind a connection that was lost.
        """
        self._number = _UNKNOWN
        self._renewing = asyncio.create_task(self._renew())

    async def claim(self) -> None:
        """Write the first record: the lease is ours then, and is renewed until `close`.

        It is sent once, and on the connection on which the lease was waited for. Else a broker that has lost
        records could take it when it has come to the same number again, and somebody holds the lease there.

        Raises:
            LeaseError: somebody was faster.
            NotNowError: it is not known whether it is stored. It does not count: wait for the lease anew.
            StorageError, LinkError: see `write`.
        """
        connection = self._stream.connection
        number = connection.number
        if number != self._number:
            raise NotNowError("the connection is lost")
        claim = self.holder.ask(clock())
        try:
            sequence = await self._stream.put(claim, None, b"", after=self.holder.sequence)
        except WrongSequenceError as error:
            raise LeaseError("somebody was faster") from error
        if connection.number != number:
            raise NotNowError("the connection was lost")
        self.holder.stored(sequence)
        self._renewing = asyncio.create_task(self._renew())

    async def close(self) -> None:
        """Renew no more."""
        if self._renewing:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def write(
        self, batch: Batch | None = None, body: bytes = b"", epoch: str = "", **changes: Any
    ) -> int:
        """Have a record stored; wait while the stream has no leader.

        If it is cancelled, the record may be stored all the same; the next one finds out.

        Args:
            epoch: digest of the one that is in it.
            changes: of the lease record, see `Record`; they stay.

        Returns:
            Its number. Behind BYE nothing is written any more.

        Raises:
            LeaseError: the lease is lost; this record was not stored.
            StorageError: the broker has no room.
            LinkError: the connection is closed for good.
        """
        async with self._lock:
            if self.holder.pending:  # somebody was cancelled
                await self._settle()
            if self.holder.record.state is State.ENDED:  # who asks for the last record is to find BYE there
                return self.holder.sequence
            self.holder.ask(clock(), **changes)
            self._carried, self._epoch = (batch, body), epoch
            await self._settle()
            return self.holder.sequence

    async def _settle(self) -> None:
        """Send what is pending until it is stored, or never can be."""
        try:
            await until_done(self._sent, self._stream.connection.url)
        except LeaseError:
            self.on_lost()
            raise
        except StorageError:
            self.holder.pending = None  # it was refused for good
            raise

    async def _sent(self) -> None:
        """Send what is pending once. Raises: NotNowError: it is not known to be stored.

        On a new connection the last record is looked at first: if the broker has lost records meanwhile, it
        may have come to our number again, with a record of somebody else.
        """
        holder, number = self.holder, self._stream.connection.number
        assert holder.pending
        if number < 0:
            raise NotNowError("the connection is lost")
        if number == self._number:
            try:
                self._is_stored(await self._stream.put(holder.pending, *self._carried, after=holder.sequence))
                return
            except (WrongSequenceError, NotNowError):
                pass
        last = await self._stream.last()
        if last and last.record == holder.pending:
            self._is_stored(last.sequence)
            self._number = number
            return
        if not last:
            await self._stream.create_again()
        may_send = holder.missed(last.record if last else None, last.sequence if last else 0)
        self._number = number if may_send else _UNKNOWN
        raise NotNowError("it is not stored")

    def _is_stored(self, sequence: int) -> None:
        self.holder.stored(sequence)
        self.stored = self._epoch or self.stored

    async def _renew(self) -> None:
        with contextlib.suppress(LeaseError):
            while self.holder.record.state in (State.HELD, State.SEEKING):
                due = self.holder.renewal_at() - clock()
                if due > 0:
                    await asyncio.sleep(due)
                    continue
                with contextlib.suppress(StorageError, LinkError):  # as long as it lasts, nothing is released
                    await self.write()
                if self._stream.connection.closed:
                    return
