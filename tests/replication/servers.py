"""NATS servers for tests: one, or a cluster of three on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from checkpoint.replication.links.address import Address
from tests.conftest import missing
from tests.helpers import stands, wait_for

NEW = Path(sys.prefix) / "bin" / "nats-server"


def binary(version: str) -> str:
    """The server of Debian ("2.9"), or the one of tools/nats-server.txt ("2.15")."""
    places = [place for place in os.environ.get("PATH", "").split(":") if Path(place) != NEW.parent]
    path = (
        shutil.which("nats-server", path=":".join([*places, "/usr/sbin"])) if version == "2.9" else str(NEW)
    )
    if not path or not Path(path).exists():
        missing(f"nats-server {version}")
    assert path
    return path


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Server:
    """One server, with JetStream in `root`."""

    def __init__(self, version: str, root: Path, store: Path | None = None, **settings: Any) -> None:
        """Args: settings: lines of its configuration; `jetstream` has those of that section."""
        self.root = root
        self.binary = binary(version)
        self.settings = settings
        self.store = store or root / "store"
        self.port = self.monitor = 0
        self.process: subprocess.Popen[bytes] | None = None
        root.mkdir(parents=True, exist_ok=True)

    def start(self, ports: tuple[int, int] | None = None) -> bool:
        """Begin to start it. Returns: False: it has no port, as somebody was faster."""
        self.port, self.monitor = ports or (self.port, self.monitor)
        settings = {**self.settings}
        jetstream = {"store_dir": str(self.store), **settings.pop("jetstream", {})}
        lines = [f"{name}: {json.dumps(value)}" for name, value in settings.items()]
        lines += [f"listen: 127.0.0.1:{self.port}", f"http: 127.0.0.1:{self.monitor}", "jetstream {"]
        lines += [f"  {name}: {json.dumps(value)}" for name, value in jetstream.items()] + ["}"]
        (self.root / "server.conf").write_text("\n".join(lines))
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen([self.binary, "-c", str(self.root / "server.conf")], stderr=log)
        wait_for(lambda: self.ended() or self.answers(), "a NATS server answers")
        return not self.ended()

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as one:
            return one.recv(4) == b"INFO" and self.monitored("varz") is not None
        return False

    def monitored(self, what: str) -> Any:
        """What its monitoring says; None: nothing."""
        with suppress(OSError, ValueError):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/{what}", timeout=1) as answer:
                return json.loads(answer.read())
        return None

    def __enter__(self) -> Server:
        for _ in range(10):
            if self.start((free_ports(2)[0], free_ports(2)[1])):
                return self
        raise AssertionError((self.root / "log").read_text())

    def __exit__(self, *_: object) -> None:
        self.kill()

    def signal(self, number: int) -> None:
        """Send it; one that is stopped stands when this returns."""
        assert self.process
        pid = self.process.pid
        os.kill(pid, number)
        if number == signal.SIGSTOP:
            wait_for(lambda: stands(pid), "the NATS server stands")

    def kill(self) -> None:
        if self.process and not self.ended():
            self.signal(signal.SIGKILL)
            self.process.wait()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def address(self, name: str) -> Address:
        return Address("nats", "127.0.0.1", self.port, name=name)


class Cluster:
    """Three servers that know each other."""

    def __init__(self, version: str, root: Path, **settings: Any) -> None:
        self.version, self.root, self.settings = version, root, settings
        self.servers: list[Server] = []

    def __enter__(self) -> Cluster:
        for _ in range(10):
            ports = free_ports(9)
            self.servers = [
                Server(
                    self.version, self.root / f"s{n}", self.store_of(n),
                    **self.settings_of(n, ports), **self.settings,
                )
                for n in range(3)
            ]  # fmt: skip
            if all(one.start((ports[3 + n], ports[6 + n])) for n, one in enumerate(self.servers)):
                wait_for(self._has_leader, "the cluster has a leader")
                return self
            self.kill_all()
        raise AssertionError("a cluster cannot be started")

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def kill_all(self) -> None:
        for one in self.servers:
            one.kill()

    def settings_of(self, n: int, ports: list[int]) -> dict[str, Any]:
        """Lines of the configuration of one. Args: ports: for routes, clients and monitoring, three each."""
        routes = [f"nats://127.0.0.1:{port}" for port in ports[:3]]
        cluster = {"name": "tests", "listen": f"127.0.0.1:{ports[n]}", "routes": routes}
        return {"server_name": f"s{n}", "cluster": cluster}

    def store_of(self, n: int) -> Path | None:
        """Where it keeps its streams; None: beside its log."""

    def _has_leader(self) -> bool:
        found = [one.monitored("jsz") for one in self.servers]
        return all(one and one.get("meta_cluster", {}).get("leader") for one in found)

    def leader(self, stream: str) -> Server:
        """The server that leads a stream."""
        found: list[Server] = []

        def known() -> bool:
            for one in self.servers:
                if not one.ended() and (says := one.monitored("jsz?streams=true&accounts=true")):
                    for account in says.get("account_details", []):
                        for detail in account.get("stream_detail", []):
                            if detail["name"] == stream and detail.get("cluster", {}).get("leader"):
                                name = detail["cluster"]["leader"]
                                found[:] = [self.servers[int(name[1:])]]
            return bool(found)

        wait_for(known, f"{stream} has a leader")
        return found[0]
