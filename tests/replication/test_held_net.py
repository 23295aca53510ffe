"""The packets of a process are held until the epoch that has what came before them is acknowledged."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint.replication.held_net import HeldNet
from tests.helpers import Spawn
from tests.replication import debian
from uffdtrack.errors import InvalidInputError, UnsupportedError


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def network(root: None) -> Iterator[str]:
    """A network namespace with an interface that leads to this one."""
    name = f"ut{os.getpid()}n"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", f"{name}0", "type", "veth", "peer", "name", "eth0", "netns", name)
        yield name
    finally:
        _ip("netns", "del", name)


def test_who_shares_its_network(root: None, network: str, spawn: Spawn) -> None:
    ours = spawn(sys.executable, "-c", "import sys; sys.stdin.read()")
    with pytest.raises(InvalidInputError, match=f"process {ours.pid} shares this network"):
        HeldNet(ours.pid)
    inside = [
        spawn("ip", "netns", "exec", network, sys.executable, "-c", "print(flush=True); input()")
        for _ in range(2)
    ]
    for one in inside:
        assert one.stdout and one.stdout.readline()
    with pytest.raises(InvalidInputError, match=f"its network with process {inside[1].pid}"):
        HeldNet(inside[0].pid)


def test_a_kernel_without_it(network: str, spawn: Spawn) -> None:
    """If this one has it, it is held, and let go."""
    inside = spawn("ip", "netns", "exec", network, sys.executable, "-c", "print(flush=True); input()")
    assert inside.stdout and inside.stdout.readline()
    try:
        HeldNet(inside.pid).close()
    except UnsupportedError as error:
        assert "sch_plug" in str(error)
    assert inside.poll() is None
    queues = subprocess.run(["ip", "-n", network, "link", "show", "eth0"], capture_output=True, text=True)
    assert "plug" not in queues.stdout


PROGRAM = '''
import os, signal, socket, subprocess, sys, time
from pyroute2 import IPRoute, netns
from checkpoint.replication import held_net
from checkpoint.replication.held_net import HeldNet

def names(route):
    return {link.get_attr("IFLA_IFNAME"): link["index"] for link in route.get_links()}

SENDER = """
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("v1", 0))
for line in sys.stdin:
    wire.send(bytes([255] * 12) + bytes([0x88, 0xb5]) + line.strip().encode())
    print(flush=True)
"""
HOLDER = """
import sys
from checkpoint.replication.held_net import HeldNet
held = HeldNet(int(sys.argv[1]))
held.mark()
print(flush=True)
sys.stdin.read()
"""
sender = subprocess.Popen(
    [sys.executable, "-c", UNSHARE + SENDER],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
)
assert sender.stdout.readline() == b"apart\\n"
route = IPRoute()
route.link("add", ifname="v0", kind="veth", peer={"ifname": "v1", "net_ns_fd": f"/proc/{sender.pid}/ns/net"})
route.link("set", index=names(route)["v0"], state="up")
sender.stdin.write(b"up\\n"); sender.stdin.flush()
assert sender.stdout.readline() == b"up\\n"
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
wire.bind(("v0", 0x88B5))

def send(text):
    sender.stdin.write(text.encode() + b"\\n"); sender.stdin.flush()
    assert sender.stdout.readline()

def came(*expected):
    """These have come, and no other."""
    found = []
    wire.settimeout(60)
    while len(found) < len(expected):
        found.append(wire.recv(99)[14:].decode())
    wire.settimeout(0.3)
    try:
        found.append(wire.recv(99)[14:].decode())
    except TimeoutError:
        pass
    assert found == list(expected), (found, expected)

send("free"); came("free")
held = HeldNet(sender.pid)
send("a"); came()
held.mark(); first = held.taken()
send("b"); came()
held.mark(); second = held.taken()  # "a" waits: "b" stays in the buffer that is open
send("c"); came()
first(); came("a")
second(); came()  # nothing was ended since
held.mark(); third = held.taken()
held.mark(); fourth = held.taken()
send("d")
fourth(); came("b", "c")  # the third was dropped; what it had is in the fourth
third(); came()
held.mark(); held.mark(); dropped = held.taken()
send("e"); came()
held.close(); came("d", "e")
held.close()
send("f"); came("f")
print("HELD", flush=True)

with HeldNet(sender.pid) as held:
    send("g"); held.mark(); held.taken()(); came("g")
    send("h"); came()
came("h")

holder = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(sender.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)
assert holder.stdout.readline()
send("i"); came()
holder.send_signal(signal.SIGKILL); holder.wait()
came("i")
send("j"); came("j")
print("KILLED", flush=True)
'''
UNSHARE = """
import ctypes, sys
assert not ctypes.CDLL(None).unshare(0x40000000)  # CLONE_NEWNET
print("apart", flush=True)
sys.stdin.readline()
from pyroute2 import IPRoute
route = IPRoute()
(link,) = [link for link in route.get_links() if link.get_attr("IFLA_IFNAME") == "v1"]
route.link("set", index=link["index"], state="up")
print("up", flush=True)
"""


@pytest.mark.slow
def test_on_a_kernel_that_has_it(tmp_path: Path) -> None:
    """Debian's, in a VM: in order, each once, none before its epoch is acknowledged; and after kill -9."""
    program = f"UNSHARE = {UNSHARE!r}\n{textwrap.dedent(PROGRAM)}"
    printed = debian.run(debian.kernel(tmp_path), tmp_path, program, ("veth", "sch_plug"))
    assert all(word in printed for word in ("HELD", "KILLED", "DONE")), printed[-4000:]
