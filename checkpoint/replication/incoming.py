"""An epoch that comes over a link, put together in memory."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from checkpoint.digest import image_digest
from checkpoint.errors import ImageError, LinkError
from checkpoint.files import malformed, write_all
from checkpoint.image import EpochFile
from uffdtrack.closing import Closing

MOST = 1 << 40
"""No image is larger, in bytes."""
SMALL = 1 << 20
"""An image of so many bytes at most is in our own memory, which takes no system call; others in a memfd."""


class ImageInMemory(EpochFile):
    """An image whose bytes we have. `name`: for people."""

    in_memory = True

    def __init__(self, name: str, contents: bytes) -> None:
        self.path = Path(name)
        self.identity = ()
        self._contents = contents
        with malformed(self.path):
            self._load(self.open(), len(contents))

    def open(self) -> BinaryIO:
        return io.BytesIO(self._contents)

    def data(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._contents, np.uint8)

    def _digested(self, key: bytes) -> bytes:
        return image_digest(memoryview(self._contents), self._digest_at, key, self._digest_kind)


class Incoming(Closing):
    """The image of one epoch; `whole` makes an epoch of it.

    Attributes:
        number: what its sender calls it.
        size: bytes of it that have come.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.size = 0
        self._memory = bytearray()
        self._fd = -1

    def part(self, offset: int, body: bytes | memoryview) -> None:
        """Add a part; a later one may replace an earlier one.

        Raises:
            LinkError: it is where no image has anything.
            OSError: there is no memory.
        """
        end = offset + len(body)
        if not 0 <= offset <= end <= MOST:
            raise LinkError(f"a part of epoch {self.number} is at {offset}, where no image has anything")
        if self._fd < 0 and end > SMALL:
            self._fd = os.memfd_create(f"epoch-{self.number}", os.MFD_CLOEXEC)
            write_all(self._fd, [memoryview(self._memory)], 0)
            self._memory = bytearray()
        if self._fd >= 0:
            write_all(self._fd, [body], offset)
        else:
            self._memory.extend(bytes(max(offset - len(self._memory), 0)))
            self._memory[offset:end] = body
        self.size = max(self.size, end)

    def whole(self, size: int, digest: str, key: bytes) -> EpochFile:
        """Check every byte, and parse it. The epoch is valid until `close`.

        Raises:
            LinkError: it is not what was sent.
            ImageError: it is no image, or its key is another.
        """
        if size != self.size:
            raise LinkError(f"epoch {self.number} has {self.size} bytes instead of {size}")
        epoch: EpochFile
        if self._fd >= 0:
            epoch = EpochFile(Path(f"/proc/self/fd/{self._fd}"))
        else:
            epoch = ImageInMemory(f"epoch {self.number}", bytes(self._memory))
        epoch.verify(key)
        if epoch.digest != digest or epoch.epoch != self.number:
            raise ImageError(f"epoch {self.number} was announced, and epoch {epoch.epoch} has come")
        return epoch

    def write_to(self, fd: int) -> None:
        """Write the image to a file. Raises: OSError."""
        if self._fd < 0:
            if len(self._memory) != self.size:
                raise OSError(0, "the image was given up")
            write_all(fd, [memoryview(self._memory)], 0)
            return
        done = 0
        while done < self.size:
            sent = os.sendfile(fd, self._fd, done, self.size - done)
            if not sent:
                raise OSError(0, "the image was cut off")
            done += sent

    def close(self) -> None:
        """Give its memory back. Idempotent."""
        self._memory = bytearray()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
