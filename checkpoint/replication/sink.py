"""Epochs that go to a standby: images over a link."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from checkpoint.digest import HEAD
from checkpoint.epoch import Epoch, EpochRow
from checkpoint.errors import StandbyAwayError
from checkpoint.facts import ImageFacts
from checkpoint.image_writer import ImageWriter
from checkpoint.replication.features import DELTAS, ZSTD
from checkpoint.replication.links.frames import MAX_BODY, Kind, Message
from checkpoint.replication.outgoing import Outgoing, parts_of
from checkpoint.sink import ChainDraft, ChainSink, Tip
from kvmglue import Positions
from uffdtrack import Region

KNOWN = 512
"""Of so many epochs that were sent last we know how another one can follow them."""


class LinkWriter(ImageWriter):
    """Makes an image of what it sends, in parts of a megabyte at most. It is safe when it is acknowledged.

    Attributes:
        output: up to where it has what a guest has sent.
    """

    directory = None

    def __init__(self, outgoing: Outgoing, life: int, number: int, parent: str, key: bytes) -> None:
        super().__init__(key)
        self._outgoing = outgoing
        self._life = life
        self._number = number
        self._zstd = ZSTD in outgoing.features
        self._held = bytearray(HEAD)  # its place: it comes last
        self._at = self._size = 0
        self.output: Positions = (0, 0)
        outgoing.begun = number
        self._first = [Message(Kind.BEGIN, {"epoch": number, "parent": parent})]

    def finish(self, describe: Callable[[int, int], ImageFacts], notes: bytes, regions: list[Region]) -> str:
        about: list[ImageFacts] = []

        def describing(pages: int, content: int) -> ImageFacts:
            about.append(describe(pages, content))
            return about[-1]

        digest = super().finish(describing, notes, regions)
        self._flush()
        meta = {
            "epoch": self._number, "size": self._size, "digest": digest, "base": about[0].base,
            "parent": about[0].parent,
        }  # fmt: skip
        end = Message(Kind.END, meta)
        self._ticket = self._outgoing.announce(self._life, digest, self._number, self._size, self.output, end)
        return digest

    @property
    def is_on_its_way(self) -> bool:
        return self._outgoing.is_on_its_way(self._ticket)

    def sync(self) -> None:
        """Wait until it is acknowledged. Raises: StandbyAwayError: the link has gone before that."""
        self._outgoing.wait(self._ticket)

    def rename(self) -> None:
        """Does nothing: the standby gives it its name."""

    def abort(self) -> None:
        """Does nothing: the standby drops what has no end when the next one begins."""

    def withdraw(self) -> None:
        """Does nothing: the standby may have it, and what follows it has its pages, too."""

    def _write(self, parts: Sequence[bytes | memoryview], offset: int) -> None:
        for part in parts:
            within = offset - self._at
            if 0 <= within <= len(self._held) - len(part):
                self._held[within : within + len(part)] = part
                offset += len(part)
                self._size = max(self._size, offset)
                continue
            if offset != self._at + len(self._held) or len(self._held) + len(part) > MAX_BODY:
                self._flush()
                self._at = offset
            if len(part) >= MAX_BODY:
                self._send(offset, bytes(part))
                self._at = offset + len(part)
            else:
                self._held += part
            offset += len(part)
            self._size = max(self._size, offset)

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, bytearray()
            self._send(self._at, held)
            self._at += len(held)

    def _send(self, offset: int, data: bytes | bytearray) -> None:
        self._outgoing.send(self._life, *self._first, *parts_of(offset, data, self._zstd))
        self._first = []

    def _written(self) -> None:
        """The rest goes with the end."""


class LinkImages:
    """The other end of a link, as a directory of images.

    Attributes:
        life: of the link that they are for, see `Outgoing`.
    """

    def __init__(self, outgoing: Outgoing, key: bytes) -> None:
        self.next_epoch = 0
        self.parent = ""
        self.life = -1
        self._outgoing = outgoing
        self._key = key

    def begin(self, number: int, parent: str = "") -> LinkWriter:
        return LinkWriter(self._outgoing, self.life, number, parent, self._key)

    def committed(self, number: int, digest: str, last: bool) -> None:
        self.next_epoch, self.parent = number + 1, digest


class LinkSink(ChainSink):
    """Sends epochs to a standby. An epoch is safe when the standby has acknowledged it.

    When a link breaks, what was sent and not acknowledged is pending again; yet the standby may have some of
    it. So it is known of the last epochs that were sent how another one follows them.
    """

    quick = True

    def __init__(self, outgoing: Outgoing, key: bytes) -> None:
        self.images = LinkImages(outgoing, key)
        super().__init__(self.images)
        self._outgoing = outgoing
        outgoing.arrived = lambda: self.arrived()
        self._known: dict[str, Tip] = {}
        self._based = self._wanted = False
        self._from = ""

    def begin_from(self, digest: str) -> None:
        """The next link begins behind that epoch; "": with a base. By its thread, before it is linked."""
        self._from = digest

    def follows(self, drain: Callable[[], None]) -> bool:
        life, away = self._outgoing.life, self._outgoing.away
        if away:
            raise StandbyAwayError(away)
        if life != self.images.life:
            drain()
            tip = self._known.get(self._from)
            if tip:
                self.tip = self._safe = tip
            self._based = tip is not None
            self.deltas = DELTAS in self._outgoing.features
            self.images.life = life
        return self._based and not self._wanted

    def begin(self, base: bool = False) -> LinkDraft:
        if base:
            self._wanted = False
        return LinkDraft(self, self.images.begin(self.tip.number, "" if base else self.tip.digest))

    def want_base(self) -> None:
        """The next epoch has to be a base: somebody follows who has none. By the link's thread."""
        self._wanted = True

    def sent(self, tip: Tip) -> None:
        """An epoch is on its way. `tip`: what follows it."""
        self._known[tip.digest] = tip
        while len(self._known) > KNOWN:
            self._known.pop(next(iter(self._known)), None)

    def committed(self, tip: Tip, last: bool) -> None:
        super().committed(tip, last)
        self._based = True


class LinkDraft(ChainDraft):
    """One epoch on its way to a standby."""

    def __init__(self, sink: LinkSink, file: LinkWriter) -> None:
        super().__init__(sink, file)
        self._link = sink
        self._writer = file

    @property
    def is_on_its_way(self) -> bool:
        return self._writer.is_on_its_way

    def finish(self, epoch: Epoch) -> EpochRow:
        if epoch.facts.output:
            self._writer.output = epoch.facts.output.end
        row = super().finish(epoch)
        self._link.sent(self._tip)
        return row
