"""Servers, with a connection for each question."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import urllib.request

from tests.helpers import on_a_free_port
from tests.real.programs.base import Program, connects, free_port


class Node(Program):
    ends_threads = True
    script = """
const http = require("http"), zlib = require("zlib"); let total = 0, kept = [];
http.createServer((q, r) => {
  if (q.url === "/bump") {
    total++; kept.push("x".repeat(1000) + total); if (kept.length > 2000) kept.shift();
  }
  zlib.gzip(kept.join(), (e, b) => zlib.gunzip(b, (e, s) => {
    if (s.toString() !== kept.join()) process.exit(3);
    r.end(String(total)); }));
}).listen(Number(process.argv[1]), "127.0.0.1");
"""

    def start(self) -> subprocess.Popen[bytes]:
        def started(port: int) -> subprocess.Popen[bytes]:
            return self.popen(self.tool("node"), "-e", self.script, port)

        process, self.port = on_a_free_port(started, connects)
        self.process = process
        self.last = self.get("/value")
        return process

    def get(self, path: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return int(answer.read())

    def bump(self) -> None:
        before, self.last = self.last, self.get("/bump")
        assert self.last == before + 1

    def value(self) -> int:
        self.last = self.get("/value")
        return self.last


class Lines(Program):
    """A server of a line protocol, with a connection for each question."""

    def server(self) -> list[object]:
        raise NotImplementedError

    def start(self) -> subprocess.Popen[bytes]:
        def started(port: int) -> subprocess.Popen[bytes]:
            self.port = port
            return self.popen(*self.server())

        return on_a_free_port(started, connects)[0]

    def talk(self, *questions: bytes) -> list[bytes]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as s, s.makefile("rb") as answers:
            said = []
            for question in questions:
                s.sendall(question + b"\r\n")
                said.append(answers.readline().strip())
        return said


class Redis(Lines):
    def server(self) -> list[object]:
        return [self.tool("redis-server"), "--port", self.port, "--bind", "127.0.0.1", "--save", ""]

    def bump(self) -> None:
        assert self.talk(b"LPUSH l " + b"x" * 1000, b"INCR n")[1].startswith(b":")

    def value(self) -> int:
        n = self.talk(b"LLEN l")[0]
        return int(n[1:])


class Memcached(Lines):
    def server(self) -> list[object]:
        return [self.tool("memcached"), "-p", self.port, "-l", "127.0.0.1", "-u", "nobody", "-m", "32"]

    def start(self) -> subprocess.Popen[bytes]:
        process = super().start()
        assert self.talk(b"set n 0 0 8\r\n00000000") == [b"STORED"]
        return process

    def bump(self) -> None:
        text = os.urandom(400).hex().encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as s, s.makefile("rb") as answers:
            s.sendall(b"set t 0 0 800\r\n" + text + b"\r\nget t\r\nincr n 1\r\n")
            said = [answers.readline().strip() for _ in range(5)]
        assert said[0] == b"STORED" and said[2] == text and said[4].isdigit()

    def value(self) -> int:
        return int(self.talk(b"incr n 0")[0])


class Nats(Lines):
    """A server in Go."""

    ends_threads = True

    def server(self) -> list[object]:
        self.http = free_port()
        return [self.tool("nats-server"), "-a", "127.0.0.1", "-p", self.port, "-m", self.http]

    def bump(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as s, s.makefile("rb") as answers:
            assert answers.readline().startswith(b"INFO")
            s.sendall(b'CONNECT {"verbose":false}\r\nSUB a 1\r\nPUB a 5\r\nhello\r\nPING\r\n')
            said = [answers.readline().strip() for _ in range(3)]
        assert said == [b"MSG a 1 5", b"hello", b"PONG"]

    def value(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/varz", timeout=30) as answer:
            return int(json.load(answer)["in_msgs"])


class Nginx(Lines):
    tree = True
    asking = 1  # the status counts the requests for it

    def server(self) -> list[object]:
        (self.directory / "index.html").write_text("nginx " * 5000)
        (self.directory / "nginx.conf").write_text(
            f"daemon off; worker_processes 2; pid {self.directory}/pid; error_log {self.directory}/log;\n"
            "user root; events {}\n"
            f"http {{ access_log off; server {{ listen 127.0.0.1:{self.port}; root {self.directory};\n"
            "location = /status { stub_status; } } }\n"
        )
        return [self.tool("nginx"), "-c", self.directory / "nginx.conf"]

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return str(answer.read().decode())

    def bump(self) -> None:
        assert self.get("/index.html") == "nginx " * 5000

    def value(self) -> int:
        found = re.search(r"\n (\d+) (\d+) (\d+)", self.get("/status"))
        assert found
        return int(found[3])
