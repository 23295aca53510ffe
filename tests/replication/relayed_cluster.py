"""A cluster of three NATS servers behind relays, with a small disk each; it is made whole after a failure."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from checkpoint.replication.broker.lease import Record
from checkpoint.replication.broker.stream import LEASE
from tests.replication.nats_relay import Line, Watch
from tests.replication.nats_wire import headers, read
from tests.replication.servers import Cluster, Server

MAX_PAYLOAD = 16384
"""Small, so that epochs have parts."""
DISK, BELIEVED = "size=64m", 1 << 40
SLOW = 0.005
"""Seconds for each message, or piece of what servers send each other."""
PATIENCE = 8.0
"""Seconds. A server of 2.9 whose disk was full may take minutes."""


class RelayedCluster(Cluster):
    """All that goes to a server, or from one to another, goes through a relay. A context manager.

    Attributes:
        watch: what clients and servers say to each other.
    """

    def __init__(self, version: str, root: Path) -> None:
        super().__init__(version, root, max_payload=MAX_PAYLOAD, jetstream={"max_file_store": BELIEVED})
        self.watch = Watch()
        self._full: set[int] = set()
        self._stack = ExitStack()

    def __enter__(self) -> RelayedCluster:
        with ExitStack() as stack:
            self.clients = [Line(self.watch) for _ in range(3)]
            self.between = {pair: Line() for pair in itertools.permutations(range(3), 2)}
            for line in self._lines():
                stack.callback(line.close)
            for n in range(3):
                stack.callback(_mounted(self.root / f"disk{n}"))
            stack.callback(self.kill_all)
            super().__enter__()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def settings_of(self, n: int, ports: list[int]) -> dict[str, Any]:
        """Advertise the relays; what is not advertised cannot be reached beside them."""
        self.clients[n].to = ports[3 + n]
        others = [pair for pair in self.between if pair[0] == n]
        for pair in others:
            self.between[pair].to = ports[pair[1]]
        return {
            "server_name": f"s{n}",
            "client_advertise": f"127.0.0.1:{self.clients[n].port}",
            "cluster": {
                "name": "tests", "listen": f"127.0.0.1:{ports[n]}", "advertise": "127.0.0.1:1",
                "routes": [f"nats://127.0.0.1:{self.between[pair].port}" for pair in others],
            },
        }  # fmt: skip

    def store_of(self, n: int) -> Path:
        return self.root / f"disk{n}" / "js"

    def _lines(self, n: int | None = None, clients: bool = True) -> Iterator[Line]:
        """Of one server, or all; with or without those of its clients."""
        if clients:
            yield from (line for at, line in enumerate(self.clients) if n in (None, at))
        yield from (line for pair, line in self.between.items() if n is None or n in pair)

    # -- failures ---------------------------------------------------------------------------------

    def role(self, name: str, number: int) -> int:
        """Which server it is now: 0, the leader of the records; 1 and 2, its followers."""
        leader = self.servers.index(self.leader(f"uffdtrack-{name}"))
        return [leader, *(n for n in range(3) if n != leader)][number]

    def part(self, n: int, clients: bool) -> None:
        """Cut a server off from the others, and from its clients."""
        for line in self._lines(n, clients):
            line.part()

    def slow(self, n: int) -> None:
        for line in self._lines(n):
            line.delay = SLOW

    def fill(self, n: int) -> None:
        """Leave no free byte."""
        self._full.add(n)
        with self._filler(n).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))

    def _filler(self, n: int) -> Path:
        return self.root / f"disk{n}" / "filler"

    def heal(self) -> None:
        """Let all go on."""
        for line in self._lines():
            line.heal()
        for n, server in enumerate(self.servers):
            if not server.ended():
                server.signal(signal.SIGCONT)
            if n in self._full:
                self._filler(n).unlink()
                self._full.discard(n)
                server.kill()  # it does not go on by itself, and one of 2.9 may not even say so
            if server.ended():
                server.start()

    def make_whole(self) -> None:
        """`heal`, and wait until all servers follow one leader; if they do not soon, begin anew."""
        self.heal()
        until = time.monotonic() + PATIENCE
        while not self._is_whole():
            if time.monotonic() > until:
                self._begin_anew()
                until = time.monotonic() + PATIENCE
            time.sleep(0.1)

    def _begin_anew(self) -> None:
        self.kill_all()
        for n, server in enumerate(self.servers):
            shutil.rmtree(self.store_of(n), ignore_errors=True)
            server.start()

    def _is_whole(self) -> bool:
        says = [server.monitored("jsz") for server in self.servers]
        leaders = {(one or {}).get("meta_cluster", {}).get("leader") for one in says}
        if len(leaders) != 1 or not all(leaders) or not all(map(self._is_joined, self.servers)):
            return False
        return all((server.monitored("healthz") or {}).get("status") == "ok" for server in self.servers)

    def _is_joined(self, server: Server) -> bool:
        """Whether it has a route to both others."""
        routes = (server.monitored("routez") or {}).get("routes", [])
        return len({route["remote_id"] for route in routes}) == 2

    def state(self) -> str:
        """Of routes and streams, for people."""
        found = []
        for server in self.servers:
            routes = (server.monitored("routez") or {}).get("routes", [])
            says = server.monitored("jsz?streams=true&accounts=true") or {}
            streams = [
                (one["name"], one["state"]["last_seq"], one.get("cluster"))
                for account in says.get("account_details", [])
                for one in account.get("stream_detail", [])
            ]
            to = [(route.get("remote_name", "?"), route["pending_size"]) for route in routes]
            found.append(f"-- {server.root.name}: routes {to}, {says.get('meta_cluster')}, {streams}")
        return "\n".join(found)

    def logs(self) -> str:
        return "\n".join((server.root / "log").read_text()[-3000:] for server in self.servers)

    # -- what is stored ---------------------------------------------------------------------------

    def last_record(self, name: str) -> Record | None:
        """The last one, by the leader of the records; None: there is none.

        Raises:
            OSError: nobody says so.
        """
        wanted = {"last_by_subj": f"uffdtrack.{name}.record"}
        answer = self.ask(f"$JS.API.STREAM.MSG.GET.uffdtrack-{name}", wanted)
        if "error" in answer:
            if answer["error"].get("code") == 404:
                return None
            raise OSError(str(answer["error"]))
        return Record.parse(headers(base64.b64decode(answer["message"]["hdrs"]))[LEASE])

    def drop(self, name: str) -> None:
        """Have the streams of a name deleted."""
        for stream in (f"uffdtrack-{name}", f"uffdtrack-{name}-parts"):
            with contextlib.suppress(OSError):
                self.ask(f"$JS.API.STREAM.DELETE.{stream}", {})

    def ask(self, subject: str, message: object) -> dict[str, Any]:
        """A request, to the first server that answers. Raises: OSError: none does."""
        for server in self.servers:
            with contextlib.suppress(OSError):
                return _asked(server, subject, json.dumps(message).encode())
        raise OSError("no server answers")


def _asked(server: Server, subject: str, data: bytes) -> dict[str, Any]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=1.0) as one:
        one.sendall(
            b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB answer 1\r\n'
            b"PUB %s answer %d\r\n%s\r\n" % (subject.encode(), len(data), data)
        )
        with one.makefile("rb") as file:
            while op := read(file):
                if op.subject == "answer" and op.body:
                    found: dict[str, Any] = json.loads(op.body)
                    return found
                if op.subject == "answer":
                    break
    raise OSError("no answer")


def _mounted(place: Path) -> Any:
    """Mount a small disk there. Returns: what ends it."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(place)], check=True)
    return lambda: subprocess.run(["umount", "-l", str(place)], check=True)
