"""What a standby has of an active's epochs: its memory, merged, and its chain."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from checkpoint.errors import ImageError, LinkError
from checkpoint.image import EpochFile
from checkpoint.replication.incoming import Incoming
from checkpoint.replication.mirror import Mirror
from checkpoint.replication.store import Image, Store
from checkpoint.targets.vm_output import joined
from checkpoint.targets.vm_state import output_of
from kvmglue import Output, Positions
from uffdtrack.closing import Closing
from uffdtrack.errors import UffdtrackError


class Received(Closing):
    """An epoch that has come whole, verified, and is merged nowhere yet.

    Attributes:
        number, digest, parent, base: of the epoch; `parent` is a digest.
        is_stored: the store has it, and gives its memory back.
    """

    def __init__(self, incoming: Incoming, epoch: EpochFile) -> None:
        self.incoming = incoming
        self.epoch = epoch
        self.number = epoch.epoch
        self.digest = epoch.digest
        self.parent = epoch.parent
        self.base = bool(epoch.facts.base)
        self.is_stored = False

    def close(self) -> None:
        """Give its memory back, unless the store has it."""
        if not self.is_stored:
            self.incoming.close()


class Replica(Closing):
    """Takes one epoch at a time.

    Attributes:
        mirror: the memory, if it is a VM's; None before its base has come, and of a process.
        store: its chain on disk.
        output: what a guest has sent that may not have been seen outside.
        heard: bytes of images that have come.
    """

    def __init__(self, store: Store, key: bytes) -> None:
        self.mirror: Mirror | None = None
        self.store = store
        self.output = Output()
        self.heard = 0
        self._key = key
        self._coming: Incoming | None = None
        self._last_digest = ""

    def begin(self, meta: Mapping[str, Any]) -> None:
        """An epoch begins; one that was under way is dropped. Raises: LinkError: it is malformed."""
        self.drop_partial()
        number = meta.get("epoch")
        if not isinstance(number, int) or not 0 <= number < 1 << 62:
            raise LinkError(f"an epoch has the number {number!r}")
        self._coming = Incoming(number)

    def part(self, meta: Mapping[str, Any], body: bytes | memoryview) -> None:
        """Raises: LinkError: it belongs to no epoch."""
        offset = meta.get("offset")
        if not self._coming or not isinstance(offset, int):
            raise LinkError("a part of an epoch came that has not begun")
        self._coming.part(offset, body)
        self.heard += len(body)

    def end(self, meta: Mapping[str, Any]) -> Received:
        """All of an epoch is there: verify it. It may take a second, of a base.

        Raises:
            LinkError, ImageError: it is not what was sent.
        """
        coming, self._coming = self._coming, None
        if not coming or coming.number != meta.get("epoch"):
            raise LinkError("the end of an epoch came that has not begun")
        try:
            size, digest = meta.get("size"), meta.get("digest")
            if not isinstance(size, int) or not isinstance(digest, str):
                raise LinkError("the end of an epoch says neither how large it is, nor its digest")
            return Received(coming, coming.whole(size, digest, self._key))
        except BaseException:
            coming.close()
            raise

    @property
    def coming_bytes(self) -> int:
        """How much of the epoch that is under way has come."""
        return self._coming.size if self._coming else 0

    @property
    def needs_base(self) -> bool:
        """Whether nothing can follow what is here: of a process, if its chain could not be written."""
        return bool(self.store.error) and not self.mirror

    def drop_partial(self) -> None:
        coming, self._coming = self._coming, None
        if coming:
            coming.close()

    def merge(self, received: Received) -> None:
        """Make the memory that of an epoch, which is in the store then, whose `write` has to be called.

        Raises:
            ImageError: it does not fit; nothing has changed.
            UnsupportedError, PermissionDeniedError: this host cannot run its VM.
        """
        epoch = received.epoch
        output = output_of(epoch)
        if output and not received.base:
            output = joined(self.output, output)
        if epoch.facts.vm is None:
            if self.mirror:
                raise ImageError("an epoch of a process came behind those of a VM")
        elif received.base:
            old, self.mirror = self.mirror, Mirror(epoch)
            if old:
                old.close()
        elif not self.mirror:
            raise ImageError("an epoch of a VM came behind those of a process")
        else:
            self.mirror.merge(epoch)
        follows = bool(received.parent) and received.parent == self._last_digest
        self._last_digest = received.digest
        self.output = output or Output()
        received.is_stored = True
        self.store.put(Image(received.incoming, received.base, received.base and not follows))

    def prepare(self) -> None:
        """Do what a takeover has to do, as far as that can be done before it. If it fails, it will then."""
        self.store.write(at_once=True)
        if self.mirror:
            with contextlib.suppress(UffdtrackError):
                self.mirror.ready()

    def forget_output(self, released: Positions) -> None:
        """Drop what has been seen outside, up to there."""
        self.output = self.output.since(_within(self.output, released))

    def close(self) -> None:
        self.drop_partial()
        if self.mirror:
            self.mirror.close()
        self.store.close()


def _within(output: Output, at: Positions) -> Positions:
    (serial, packets), (serial_end, packet_end) = output.start, output.end
    return min(max(at[0], serial), serial_end), min(max(at[1], packets), packet_end)
