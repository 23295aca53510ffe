"""The packets of a process, held by the kernel until the epoch of what came before them is acknowledged.

The kernel's plug queue (sch_plug, made for Remus) is put on each interface of the process's own network
namespace. BUFFER ends a buffer, RELEASE_ONE lets out the one that was ended last: it knows no more than one.
So a buffer is ended right before a stop, if there is none that waits; what is sent between that and the stop
only comes out later than it could.
"""

from __future__ import annotations

import concurrent.futures
import errno
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError, PermissionDeniedError, UnsupportedError

if TYPE_CHECKING:
    from pyroute2 import IPRoute

LIMIT = 64 << 20
"""So many bytes are held on an interface; what is sent beyond that is lost, as on a wire that is too slow."""
HANDLE = "7566:"
_LOOPBACK = 0x8
_OUT = 5.0
"""Seconds in which what was held has to leave, at the end."""


class HeldNet(Closing):
    """Holds what a process sends, from now until `close`; then all of it goes out. That happens, too, if we
    die: a process of its own waits for our end.

    Raises:
        PermissionDeniedError: we are not root.
        InvalidInputError: the process has no network namespace of its own, or no interface in it.
        UnsupportedError: this kernel has no plug queue, or pyroute2 is missing.
    """

    def __init__(self, pid: int) -> None:
        check_own_network(pid)
        self._lock = threading.Lock()
        self._stops = 0
        self._ended: int | None = None  # the stop before which the buffer was ended that waits
        self._space = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._links: list[int] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "net")
        self._guard: subprocess.Popen[bytes] | None = None
        self._route: Any = None
        try:
            self._route = self._do(lambda: entered(self._space))
            self._links = self._do(lambda: links_of(self._route))
            if not self._links:
                raise InvalidInputError(f"process {pid} has no network interface but the loopback one")
            self._guard = guard(self._space)
            self._do(lambda: plug(self._route, self._links))
        except BaseException:
            self.close()
            raise

    def mark(self) -> None:
        """A stop begins: what was sent before belongs to its epoch."""
        with self._lock:
            self._stops += 1
            if self._ended is None:
                self._ended = self._stops
                self._do(lambda: self._tell("TCQ_PLUG_BUFFER"))

    def taken(self) -> Callable[[], None]:
        """The last stop has become an epoch; call the result when that is acknowledged. In any thread."""
        stop = self._stops

        def acknowledged() -> None:
            with self._lock:
                if self._ended is not None and stop >= self._ended:
                    self._ended = None
                    self._do(lambda: self._tell("TCQ_PLUG_RELEASE_ONE"))

        return acknowledged

    def close(self) -> None:
        """Hold nothing any more. Idempotent."""
        guard, self._guard = self._guard, None
        if guard:
            assert guard.stdin
            guard.stdin.close()
            guard.wait()
        route, self._route = self._route, None
        if route:
            self._do(route.close)
        if self._space >= 0:
            os.close(self._space)
            self._space = -1
        self._thread.shutdown()

    def _tell(self, action: str) -> None:
        from pyroute2 import NetlinkError

        for link in list(self._links):
            try:
                self._route.tc("change", "plug", link, handle=HANDLE, action=action)
            except NetlinkError:
                self._links.remove(link)  # it has gone

    def _do(self, work: Callable[[], Any]) -> Any:
        """In the one thread that is in the namespace."""
        return self._thread.submit(work).result()


def check_own_network(pid: int) -> None:
    """Raises: PermissionDeniedError, InvalidInputError: see `HeldNet`."""
    if os.geteuid():
        raise PermissionDeniedError(
            "only root may hold what a process sends: run as root, or without --hold-net"
        )
    own = os.stat(f"/proc/{pid}/ns/net")
    why = ""
    if os.path.samestat(own, os.stat("/proc/self/ns/net")):
        why = "shares this network"
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            other = os.stat(f"/proc/{name}/ns/net")
        except OSError:
            continue
        if not why and int(name) != pid and os.path.samestat(own, other):
            why = f"shares its network with process {name}"
    if why:
        raise InvalidInputError(
            f"process {pid} {why}, and --hold-net would hold what others send: start it in a network "
            "namespace of its own (ip netns exec, unshare --net)"
        )


def entered(space: int) -> IPRoute:
    """Enter a network namespace with this thread, and speak to the kernel there."""
    try:
        from pyroute2 import IPRoute, netns
    except ImportError as error:
        raise UnsupportedError("--hold-net needs pyroute2: pip install 'uffdtrack[net]'") from error
    netns.setns(space)
    return IPRoute()


def links_of(route: IPRoute) -> list[int]:
    return [link["index"] for link in route.get_links() if not link["flags"] & _LOOPBACK]


def plug(route: IPRoute, links: list[int]) -> None:
    """Raises: UnsupportedError, InvalidInputError: see `HeldNet`."""
    for link in links:
        with _translated(route, link):
            route.tc("add", "plug", link, handle=HANDLE, limit=LIMIT)


@contextmanager
def _translated(route: IPRoute, link: int) -> Iterator[None]:
    from pyroute2 import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code == errno.ENOENT:
            raise UnsupportedError(
                "--hold-net: this kernel has no plug queue: load its module sch_plug "
                "(CONFIG_NET_SCH_PLUG), or do without"
            ) from error
        name = route.get_links(link)[0].get_attr("IFLA_IFNAME")
        raise InvalidInputError(
            f"--hold-net: no plug queue can be put on the interface {name}: {os.strerror(error.code)}; is "
            "there another one (tc qdisc show)?"
        ) from error


def guard(space: int) -> subprocess.Popen[bytes]:
    """A process that unplugs a network namespace when we close its stdin, or have ended."""
    code = f"from checkpoint.replication.held_net import unplug_at_end; unplug_at_end({space})"
    made = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[space],
        start_new_session=True,
    )  # fmt: skip
    assert made.stdout
    with made.stdout:
        if not made.stdout.readline():
            made.kill()
            raise UnsupportedError("--hold-net: the process that ends it does not start")
    return made


def unplug_at_end(space: int) -> None:
    """All of a guard."""
    parent = os.pidfd_open(os.getppid())  # a child of its may have our stdin's other end, too
    route = entered(space)
    links = links_of(route)
    os.write(1, b"ready\n")
    ends = select.poll()
    ends.register(0, select.POLLIN)
    ends.register(parent, select.POLLIN)
    ends.poll()
    for link in links:
        unplug(route, link)


def unplug(route: IPRoute, link: int) -> None:
    """Let out what is held, and take the queue away. Does nothing where there is none."""
    from pyroute2 import NetlinkError

    try:
        route.tc("change", "plug", link, handle=HANDLE, action="TCQ_PLUG_RELEASE_INDEFINITE")
        until = time.monotonic() + _OUT
        while waiting_at(route, link) and time.monotonic() < until:
            time.sleep(0.001)
        route.tc("del", "plug", link, handle=HANDLE)
    except NetlinkError:
        return  # it has gone, with the interface or its namespace; or it was never there


def waiting_at(route: IPRoute, link: int) -> int:
    """How many packets wait in the plug queue of an interface."""
    for queue in route.get_qdiscs(link):
        if queue.get_attr("TCA_KIND") == "plug":
            return int(queue.get_attr("TCA_STATS2").get_attr("TCA_STATS_QUEUE")["qlen"])
    return 0
