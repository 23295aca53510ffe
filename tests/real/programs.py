"""Real programs, each with a load of its own, answers that are checked, and a state that is in its memory."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from checkpoint.targets.process import stat_fields
from tests.helpers import wait_for
from uffdtrack.errors import TargetGoneError

Tool = Callable[[str], str]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def descendants(pid: int) -> list[int]:
    """All that live at some time of the question; parents before their children."""
    found: list[int] = []
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{tid}/children").read_text()
            for child in map(int, text.split()):
                found += [child, *descendants(child)]
    except OSError:
        pass  # it has ended meanwhile
    return found


def used_ticks(pid: int) -> int:
    """Processor time in user mode, in clock ticks; 0 of one that has ended."""
    try:
        return int(stat_fields(pid)[11])
    except TargetGoneError:
        return 0


class Program:
    """A program that was started and is ready.

    Attributes:
        pid: what is checkpointed.
        tree: its descendants are checkpointed with it.
        stateful: `value` tells how often `bump` was called.
        ends_threads: it may end a thread at any time, so that a rollback over that is refused.
    """

    tree = False
    asking = 0  # what a call of value() adds to it
    stateful = True
    ends_threads = False

    def __init__(self, directory: Path, tool: Tool) -> None:
        self.directory = directory
        self.tool = tool
        self.process = self.start()
        self.pid = self.process.pid

    def start(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def bump(self) -> None:
        """Have it do something, and check the answer."""
        raise NotImplementedError

    def value(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        family = [*descendants(self.process.pid), self.process.pid]
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def popen(self, *argv: object, **options: object) -> subprocess.Popen[bytes]:
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.DEVNULL)
        with (self.directory / "stderr").open("ab") as stderr:
            command = [str(a) for a in argv]
            return subprocess.Popen(command, cwd=self.directory, stderr=stderr, **options)  # type: ignore[call-overload]


class Talker(Program):
    """It reads a line, and answers with one."""

    ask = "bump"
    tell = "value"

    def argv(self) -> list[object]:
        raise NotImplementedError

    def start(self) -> subprocess.Popen[bytes]:
        self.process = self.popen(*self.argv(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.last = self.answer(self.tell)
        return self.process

    def answer(self, line: str) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        assert said, f"it has ended: {self.process.poll()} {(self.directory / 'stderr').read_text()[-500:]}"
        return int(said)

    def bump(self) -> None:
        before, now = self.last, self.answer(self.ask)
        assert now == before + 1
        self.last = now

    def value(self) -> int:
        self.last = self.answer(self.tell)
        return self.last


class Threads(Talker):
    """CPython with threads."""

    script = """
import queue, sys, threading
todo, done, table, lock = queue.Queue(), queue.Queue(), {}, threading.Lock()
def work():
    while True:
        n = todo.get()
        with lock: table[n] = [str(n)] * 50
        done.put(n)
for _ in range(4): threading.Thread(target=work, daemon=True).start()
total = 0
for line in sys.stdin:
    if line.startswith("bump"):
        for i in range(8): todo.put(total * 8 + i)
        got = sorted(done.get() for _ in range(8))
        assert got == [total * 8 + i for i in range(8)], got
        total += 1
    assert all(table[n] == [str(n)] * 50 for n in range(total * 8))
    print(total, flush=True)
"""

    def argv(self) -> list[object]:
        return [sys.executable, "-c", self.script]


class Asyncio(Threads):
    """CPython with asyncio: timers, a loop-back server."""

    script = """
import asyncio, sys
async def serve(reader, writer):
    while line := await reader.readline(): writer.write(line.upper()); await writer.drain()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    total = 0
    while line := await lines.readline():
        if line.startswith(b"bump"):
            await asyncio.gather(*(asyncio.sleep(0.001 * i) for i in range(5)))
            writer.write(b"n%d\\n" % total)
            assert await reader.readline() == b"N%d\\n" % total
            total += 1
        print(total, flush=True)
asyncio.run(main())
"""


class Bash(Talker):
    ask = "i=$((i+1)); s=$s.; [ ${#s} = $i ] && echo $i"
    tell = "echo $((i+0))"

    def argv(self) -> list[object]:
        return [self.tool("bash"), "--norc"]


class Sqlite(Talker):
    ask = (
        "insert into t select (select count(*) from t), hex(zeroblob(500)); "
        "select count(*) from t where x = hex(zeroblob(500));"
    )
    tell = "create table if not exists t (n integer primary key, x text); select count(*) from t;"

    def argv(self) -> list[object]:
        return [self.tool("sqlite3"), "-batch", ":memory:"]


class Java(Talker):
    ends_threads = True
    source = """
import java.util.*; import java.util.concurrent.*; import java.util.stream.*;
public class Main {
  public static void main(String[] a) throws Exception {
    Scanner in = new Scanner(System.in); ExecutorService pool = Executors.newFixedThreadPool(3);
    Map<Integer, byte[]> kept = new ConcurrentHashMap<>(); int total = 0;
    while (in.hasNextLine()) {
      if (in.nextLine().startsWith("bump")) {
        final int t = total; List<Future<Integer>> all = new ArrayList<>();
        for (int i = 0; i < 6; i++) { final int k = i; all.add(pool.submit(() -> {
          byte[] b = new byte[100000]; Arrays.fill(b, (byte) (t + k)); kept.put(k, b);
          return IntStream.range(0, 100000).map(j -> b[j] == (byte) (t + k) ? 1 : 0).sum(); })); }
        for (Future<Integer> f : all) if (f.get() != 100000) throw new Exception("torn");
        total++;
      }
      System.out.println(total);
    }
  }
}
"""

    def argv(self) -> list[object]:
        path = self.directory / "Main.java"
        path.write_text(self.source)
        return [self.tool("java"), "-Xmx128m", path]


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
        self.port = free_port()
        process = self.popen(self.tool("node"), "-e", self.script, self.port)
        wait_for(lambda: listens(self.port), "it listens")
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
        self.port = free_port()
        process = self.popen(*self.server())
        wait_for(lambda: listens(self.port), "it listens")
        return process

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


class Vim(Program):
    """In a terminal, by tmux."""

    def start(self) -> subprocess.Popen[bytes]:
        self.socket = self.directory / "tmux"
        vim = self.tool("vim")
        process = self.popen(
            self.tool("tmux"), "-S", self.socket, "-f", "/dev/null", "-D", stdin=subprocess.PIPE
        )
        wait_for(lambda: self.socket.exists(), "tmux listens")
        self.tmux("new-session", "-d", "-x", "120", "-y", "30", f"exec {vim} -u NONE -N -n")
        wait_for(lambda: "VIM - Vi IMproved" in self.screen(), "vim shows")
        self.process = process
        return process

    def __init__(self, directory: Path, tool: Tool) -> None:
        super().__init__(directory, tool)
        self.pid = int(self.tmux("display-message", "-p", "#{pane_pid}"))
        self.last = self.value()

    def tmux(self, *argv: str) -> str:
        done = subprocess.run(
            [self.tool("tmux"), "-S", self.socket, *argv], capture_output=True, text=True, check=True
        )
        return done.stdout

    def screen(self) -> str:
        try:
            return self.tmux("capture-pane", "-p")
        except subprocess.CalledProcessError:
            return ""

    def keys(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def bump(self) -> None:
        self.keys("G", "o", "some text", "Escape")
        before, now = self.last, self.value()
        assert now == before + 1

    def value(self) -> int:
        """Lines, asked with a word of its own each time: the screen is the terminal's, not vim's."""
        word = f"w{time.monotonic_ns()}"
        self.keys(f":echo '{word}=' . line('$') . ';'", "Enter")
        found: list[str] = []

        def shown() -> bool:
            found[:] = re.findall(rf"^{word}=(\d+);", self.screen(), re.MULTILINE)
            return bool(found)

        wait_for(shown, "vim answers")
        self.last = int(found[0])
        return self.last


class Qemu(Program):
    """A guest without a system, under emulation: its boot sector counts in its memory."""

    stateful = False
    # mov ax,0; mov ds,ax; sti-less loop: inc dword [0x8000]; jmp back
    boot = bytes.fromhex("31c08ed866ff060080ebf9")

    def start(self) -> subprocess.Popen[bytes]:
        disk = self.directory / "disk"
        disk.write_bytes(self.boot.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 16))
        self.process = self.popen(
            self.tool("qemu-system-x86_64"), "-accel", "tcg", "-m", "64", "-display", "none",
            "-monitor", "stdio", "-drive", f"file={disk},format=raw", "-net", "none",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        wait_for(lambda: self.value() > 0, "the guest counts")
        return self.process

    def bump(self) -> None:
        before = self.value()
        wait_for(lambda: self.value() > before, "the guest counts on")

    def value(self) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(b"xp /1wx 0x8000\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if found := re.match(rb"0*8000: 0x([0-9a-f]+)", line):
                return int(found[1], 16)
        raise AssertionError(f"it has ended: {self.process.poll()}")


class Chromium(Program):
    """Headless, by the debugging protocol over pipes."""

    tree = True
    ends_threads = True

    def start(self) -> subprocess.Popen[bytes]:
        theirs_in, self.to = os.pipe()
        self.of, theirs_out = os.pipe()
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = self.popen(
            self.tool("bash"), "-c", script, self.tool("chromium"), "--headless", "--no-sandbox",
            "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync",
            f"--user-data-dir={self.directory / 'profile'}", "--remote-debugging-pipe",
            pass_fds=(theirs_in, theirs_out),
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer = b""
        self.number = 0
        script = "n=0; kept=[]; function bump() { kept.push(Array(999).fill(n)); return ++n }"
        page = f"data:text/html,<script>{script}</script>"
        self.session = ""
        target = self.call("Target.createTarget", url=page)["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        wait_for(lambda: self.evaluate("typeof bump == 'function' ? 1 : 0") == 1, "the page is there")
        self.last = self.value()
        return self.process

    def call(self, method: str, **params: object) -> dict[str, str]:
        self.number += 1
        message: dict[str, object] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                got = os.read(self.of, 1 << 16)
                assert got, f"it has ended: {self.process.poll()}"
                self.buffer += got
            text, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self.number:
                assert "result" in answer, answer
                result: dict[str, str] = answer["result"]
                return result

    def evaluate(self, expression: str) -> int:
        answer: dict[str, object] = dict(self.call("Runtime.evaluate", expression=expression))
        result = answer["result"]
        assert isinstance(result, dict)
        return int(result.get("value", -1))

    def bump(self) -> None:
        before, self.last = self.last, self.evaluate("bump()")
        assert self.last == before + 1

    def value(self) -> int:
        self.last = self.evaluate("kept.length == n && kept.every((a, i) => a.every(x => x == i)) ? n : -2")
        assert self.last >= 0
        return self.last

    def close(self) -> None:
        super().close()
        os.close(self.to)
        os.close(self.of)


ALL: list[type[Program]] = [
    Redis, Memcached, Nginx, Node, Java, Nats, Chromium, Qemu, Sqlite, Threads, Asyncio, Bash, Vim,
]  # fmt: skip
"""Postgres is in tests/kernel/test_trees.py, ffmpeg in test_programs.py: they are looked at in other ways."""
