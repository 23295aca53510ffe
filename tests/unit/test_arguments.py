"""What the library is given and cannot use: a typed error that names the argument; what was closed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import uffdtrack
from uffdtrack import GuestRam, Memslot, ProcessRam, join, open_tracker, parse_size
from uffdtrack.errors import InvalidInputError, UffdtrackError

here: Any = os.getpid()
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a size that is a float": (lambda: GuestRam(1.5), "size"),  # type: ignore[arg-type]
    "a size that is bytes": (lambda: GuestRam(b"8MiB"), "size"),  # type: ignore[arg-type]
    "a size beyond all": (lambda: GuestRam(10**30), "size"),
    "no size": (lambda: parse_size(None), "size"),  # type: ignore[arg-type]
    "slots that are numbers": (lambda: GuestRam(slots=[1]), "slots"),  # type: ignore[list-item]
    "slots that are tuples": (lambda: GuestRam(slots=[(0, 1)]), "slots"),  # type: ignore[list-item]
    "a frame that is text": (lambda: GuestRam(slots=[Memslot("a", 2)]), "gfn"),  # type: ignore[arg-type]
    "half a frame": (lambda: GuestRam(slots=[Memslot(0.5, 2)]), "gfn"),  # type: ignore[arg-type]
    "no RAM": (lambda: open_tracker(None), "ram"),  # type: ignore[arg-type]
    "RAM that is a name": (lambda: open_tracker("x"), "ram"),  # type: ignore[arg-type]
    "no name": (lambda: join("", 0), "RAM"),
    "no such RAM": (lambda: join("uffdtrack-none", 0), "RAM"),
    "a pid that is text": (lambda: ProcessRam("x", 4096, 4096), "pid"),  # type: ignore[arg-type]
    "a pid beyond all": (lambda: ProcessRam(10**12, 4096, 4096), "pid"),
    "no address": (lambda: ProcessRam(here, None, 4096), "address"),  # type: ignore[arg-type]
    "an address beyond all": (lambda: ProcessRam(here, 1 << 70, 4096), "address"),
    "a range that is text": (lambda: ProcessRam(here, 4096, "x"), "size"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(what: str) -> None:
    call, name = WRONG[what]
    with pytest.raises(InvalidInputError, match=name):
        call()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"engine": []}, "engine"), ({"engine": "nope"}, "engine"), ({"vcpus": None}, "vcpus"),
     ({"vcpus": "2"}, "vcpus"), ({"vcpus": 1.5}, "vcpus"), ({"max_dirty_pages": "x"}, "max_dirty_pages"),
     ({"max_dirty_pages": 1.5}, "max_dirty_pages"), ({"max_dirty_pages": 10**30}, "max_dirty_pages")],
)  # fmt: skip
def test_wrong_options(options: dict[str, Any], name: str) -> None:
    with GuestRam("1MiB") as ram, pytest.raises(InvalidInputError, match=name):
        open_tracker(ram, **options)


def test_what_was_closed() -> None:
    ram = GuestRam("1MiB", shared=False)
    ram.close()
    for call in (lambda: open_tracker(ram, "scan"), lambda: ram.host_write(0, b"x")):
        with pytest.raises(InvalidInputError):
            call()
    with GuestRam("1MiB") as other:
        for offset, data in ((0, None), (0, "text"), ("x", b""), (1 << 20, b"x")):
            with pytest.raises(InvalidInputError):
                other.host_write(offset, data)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [True, False])
def test_view_that_outlives_its_ram(shared: bool) -> None:
    """It is memory for as long as it is there, and nothing is said when it goes."""
    script = (
        "import uffdtrack, sys\n"
        f"ram = uffdtrack.GuestRam('1MiB', shared={shared}); view = ram.array[4096:]; page = ram.page(3)\n"
        "view[0] = 7; ram.close(); ram.close()\n"
        "view[1] = 8; page[:] = 9; del ram\n"
        "print(view[0], view[1], page[0], view[2 * 4096])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7 8 9 9\n", "")


def test_public_names() -> None:
    """Every error is one of the package's own names; what breaks the tracking on purpose is none."""
    errors = {
        name for name, kind in vars(uffdtrack.errors).items()
        if isinstance(kind, type) and issubclass(kind, UffdtrackError)
    }  # fmt: skip
    assert errors <= set(uffdtrack.__all__)
    assert "sabotage" not in " ".join(uffdtrack.__all__)
    assert all(hasattr(uffdtrack, name) for name in uffdtrack.__all__)
