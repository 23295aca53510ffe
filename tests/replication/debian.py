"""A program of Python under Debian's kernel, in QEMU: for parts of a kernel that this host's may lack.

An initramfs has the interpreter, the project with all that it needs, and the program, which is /init. It
takes a minute.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = "uffdtrack", "kvmglue", "checkpoint", "tests"
"""Of the project."""
NEEDED = "uffdtrack[net]", "pytest"
"""With what these need."""
SECONDS = 600.0
_LEFT_OUT = {
    "test", "tests", "site-packages", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo",
}  # fmt: skip
_HEAD = """#!{interpreter}
import ctypes, os, sys, traceback
libc = ctypes.CDLL(None, use_errno=True)
for kind, place in ((b"proc", b"/proc"), (b"sysfs", b"/sys"), (b"devtmpfs", b"/dev")):
    libc.mount(kind, place, kind, 0, None)
console = os.open("/dev/ttyS0", os.O_RDWR)
for fd in range(3):
    os.dup2(console, fd)
sys.path[:0] = {path!r}
os.environ["PYTHONPATH"] = ":".join({path!r})
try:
    for name in {modules!r}:
        module = os.open("/modules/" + name + ".ko", os.O_RDONLY)
        assert not libc.syscall(313, module, b"", 0), name  # finit_module(2)
    exec(compile(open("/program.py").read(), "/program.py", "exec"), {{"__name__": "__main__"}})
    print("DONE", flush=True)
except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
os.system("")
libc.tcdrain(1)
libc.reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF
"""


def kernel(directory: Path) -> Path:
    """Debian's kernel for clouds, unpacked there."""
    found = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], check=True, capture_output=True, text=True
    ).stdout
    name = re.findall(r"Depends: (linux-image-\S+)", found)[0]
    subprocess.run(["apt-get", "download", name], check=True, cwd=directory, capture_output=True)
    (package,) = directory.glob("*.deb")
    subprocess.run(["dpkg", "-x", package, directory / "kernel"], check=True)
    return directory / "kernel"


def run(kernel: Path, directory: Path, program: str, modules: Iterable[str]) -> str:
    """Run a program as root in a fresh VM; returns what it has printed.

    Args:
        modules: of the kernel, in this order.
    """
    modules = list(modules)
    interpreter = Path(sys.executable).resolve()
    site = Path(sysconfig.get_path("purelib"))
    head = _HEAD.format(interpreter=interpreter, path=[str(ROOT), str(site)], modules=modules)
    files = {path: Path(path) for path in _interpreter(interpreter)}
    files |= {str(path): path for package in PACKAGES for path in _files(ROOT / package)}
    files |= {str(path): path for path in _needed(NEEDED)}
    for path in [path for path in files.values() if ".so" in path.suffixes]:
        files |= {str(linked): Path(linked) for linked in _linked(path)}
    for name in modules:
        (files[f"/modules/{name}.ko"],) = kernel.glob(f"lib/modules/*/kernel/**/{name}.ko")
    archive = directory / "initramfs"
    with gzip.open(archive, "wb", 1) as out:
        for entry in _entries(files, {"/init": head, "/program.py": program}):
            out.write(entry)
    (image,) = kernel.glob("boot/vmlinuz-*")
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "1536", "-nographic", "-no-reboot",
        "-kernel", image, "-initrd", archive, "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=True)
    return done.stdout.decode(errors="replace")


def _interpreter(interpreter: Path) -> Iterator[str]:
    """Files of the interpreter, of its library, and what they are linked with."""
    yield str(interpreter)
    yield from _linked(interpreter)
    yield from map(str, _files(Path(sysconfig.get_path("stdlib"))))


def _needed(requirements: Iterable[str]) -> Iterator[Path]:
    """Files of these distributions, and of those that they require."""
    todo, known = [Requirement(one) for one in requirements], set[str]()
    while todo:
        one = todo.pop()
        if one.name in known:
            continue
        known.add(one.name)
        found = metadata.distribution(one.name)
        files = (file for file in found.files or () if not _LEFT_OUT.intersection(file.parts))
        paths = (Path(str(file.locate())) for file in files)
        yield from (path for path in paths if _is_for_us(path.name) and path.is_file())
        for text in found.requires or ():
            more = Requirement(text)
            if not more.marker or any(more.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                todo.append(more)


def _linked(path: Path) -> list[str]:
    found = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return re.findall(r"(/\S+) \(0x", found)


def _files(directory: Path) -> Iterator[Path]:
    for at, directories, names in os.walk(directory):
        directories[:] = [d for d in directories if d not in _LEFT_OUT and not d.startswith("config-")]
        for name in names:
            if _is_for_us(name):
                yield Path(at, name)


def _is_for_us(name: str) -> bool:
    """It was not compiled by another interpreter."""
    return not name.endswith(".pyc") or name.endswith(f"{sys.implementation.cache_tag}.pyc")


def _entries(files: dict[str, Path], texts: dict[str, str]) -> Iterator[bytes]:
    """An archive of cpio(5), "newc". Times are kept: compiled files count only with them."""
    number = 0

    def entry(path: str, mode: int, data: bytes, mtime: int = 0) -> bytes:
        nonlocal number
        number += 1
        name = path.lstrip("/").encode() + b"\0"
        fields = (number, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name
        return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)

    made: set[str] = set()
    for path in (*files, *texts, "/proc/", "/sys/", "/dev/", "/tmp/", "/run/netns/"):
        parts = path.split("/")[1:-1]
        for n in range(1, len(parts) + 1):
            directory = "/".join(parts[:n])
            if directory not in made:
                made.add(directory)
                yield entry(directory, 0o40755, b"")
    for path, real in files.items():
        yield entry(path, 0o100755, real.read_bytes(), int(real.stat().st_mtime))
    for path, text in texts.items():
        yield entry(path, 0o100755, text.encode())
    yield entry("TRAILER!!!", 0, b"")
