"""An epoch that comes over a link, put together in memory."""

from __future__ import annotations

import os
from pathlib import Path

from checkpoint.errors import ImageError, LinkError
from checkpoint.files import write_all
from checkpoint.image import EpochFile
from uffdtrack.closing import Closing

MOST = 1 << 40
"""No image is larger, in bytes."""


class Incoming(Closing):
    """The image of one epoch, in a memfd; `whole` makes an epoch of it.

    Attributes:
        number: what its sender calls it.
        fd: the memfd.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.fd = os.memfd_create(f"epoch-{number}", os.MFD_CLOEXEC)
        self.size = 0

    def part(self, offset: int, body: bytes | memoryview) -> None:
        """Add a part; a later one may replace an earlier one.

        Raises:
            LinkError: it is where no image has anything.
            OSError: there is no memory.
        """
        if not 0 <= offset <= MOST - len(body):
            raise LinkError(f"a part of epoch {self.number} is at {offset}, where no image has anything")
        write_all(self.fd, [body], offset)
        self.size = max(self.size, offset + len(body))

    def whole(self, size: int, digest: str, key: bytes) -> EpochFile:
        """Check every byte, and parse it. The epoch is valid until `close`.

        Raises:
            LinkError: it is not what was sent.
            ImageError: it is no image, or its key is another.
        """
        if size != self.size:
            raise LinkError(f"epoch {self.number} has {self.size} bytes instead of {size}")
        epoch = EpochFile(Path(f"/proc/self/fd/{self.fd}"))
        epoch.verify(key)
        if epoch.digest != digest or epoch.epoch != self.number:
            raise ImageError(f"epoch {self.number} was announced, and epoch {epoch.epoch} has come")
        return epoch

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
