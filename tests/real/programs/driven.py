"""An editor in its terminal, an emulator by its monitor, a browser by its debugging protocol."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

from tests.helpers import wait_for
from tests.real.programs.base import Program, Tool


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
    ends_threads = True  # those of its pool, after ten seconds without work
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
