"""The network device: packets in and out, and where they come from and go to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from kvmglue import Order, Outbox, UdpPair, Vm, check_net, done, open_net, post, stop, take_log, wait
from tests.helpers import DEADLINE, Run, broken, wait_for
from tests.kvm.conftest import Machine, run_on
from uffdtrack.errors import InvalidInputError, PermissionDeniedError

Make = Callable[..., Machine]
HEAD = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5"


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_port:
        any_port.bind(("127.0.0.1", 0))
        return int(any_port.getsockname()[1])


@pytest.fixture
def ends() -> Iterator[tuple[UdpPair, socket.socket]]:
    """A guest's end of a wire, and the other one, by datagrams of UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        far.settimeout(DEADLINE)
        for _ in range(20):  # somebody else may take the port meanwhile
            port = free_port()
            try:
                near = open_net(f"udp:127.0.0.1:{port},127.0.0.1:{far.getsockname()[1]}")
                break
            except InvalidInputError:
                continue
        far.connect(("127.0.0.1", port))
        assert isinstance(near, UdpPair)
        yield near, far


def answers(vm: Vm, outbox: Outbox, far: socket.socket, question: bytes) -> bytes:
    """Ask an echo, and pass on what it answers."""
    before = outbox.collected[1]
    far.send(question)
    wait_for(lambda: bool(outbox.collect()) and outbox.collected[1] > before, "an answer")
    assert outbox.release(outbox.collected)
    return far.recv(2000)


def test_an_echo(machine: Make, vm_engine: str, ends: tuple[UdpPair, socket.socket]) -> None:
    """What the device writes is tracked: a copy that is made of harvested pages alone is that of the RAM."""
    made = machine(vm_engine)
    near, far = ends
    shadow = made.ram.pages().copy()
    with Outbox(made.vm, net=near) as outbox:
        made.vm.resume()
        post(made.vm, 0, Order("echo", first=100, pages=8))
        for n in range(1, 40):
            question = os.urandom(n * 35)
            got = answers(made.vm, outbox, far, question)
            assert got == HEAD + n.to_bytes(8, "little") + question
            with made.vm.paused():
                made.copy_to(shadow)
                assert not made.stale(shadow)
        stop(made.vm, 0)
        assert wait(made.vm, 0, DEADLINE)
        assert {100, 101, 102} <= set(take_log(made.vm, 0).tolist())


@pytest.mark.parametrize("engine", ["kvm-bitmap", "kvm-clear", "kvm-ring"])
def test_a_device_that_does_not_tell_is_noticed(machine: Make, engine: str) -> None:
    """The control: KVM's log does not know what the host writes."""
    made = machine(engine)
    shadow = made.ram.pages().copy()
    made.vm.resume()
    for told in (True, False):
        with nullcontext() if told else broken("device"):
            post(made.vm, 0, Order("fill", rows=range(20, 30), value=5 + told))
            assert wait(made.vm, 0, DEADLINE)
        made.copy_to(shadow)
        assert made.stale(shadow) == ([] if told else [*range(20, 30)])


def test_packets_are_those_of_the_instant(machine: Make) -> None:
    """The guest writes the page again at once."""
    vm = machine("kvm-bitmap", 2).vm
    with Outbox(vm) as outbox:
        vm.resume()
        for vcpu in range(2):
            post(vm, vcpu, Order("beacon", first=100 * vcpu, pages=4, n=800))
        for vcpu in range(2):
            assert wait(vm, vcpu, DEADLINE)
        packets = outbox.collect().packets
    assert all(packet[:14] == HEAD for packet in packets)
    assert sorted(int.from_bytes(p[14:], "little") for p in packets) == sorted([*range(1, 801)] * 2)


def test_packets_that_are_none(machine: Make, ends: tuple[UdpPair, socket.socket]) -> None:
    """What is too long is lost, and so is what nobody hears; then the wire is as it was."""
    made = machine("kvm-bitmap")
    near, far = ends
    with Outbox(made.vm, net=near) as outbox:
        made.vm.resume()
        post(made.vm, 0, Order("echo", first=100, pages=8))
        far.send(b"x" * 1515)
        got = answers(made.vm, outbox, far, b"y" * 1514)
        assert got == HEAD + (1).to_bytes(8, "little") + b"y" * 1492
        address = far.getsockname()
        far.close()
        stop(made.vm, 0)
        assert wait(made.vm, 0, DEADLINE)
        post(made.vm, 0, Order("beacon", first=100, pages=4, n=50))
        while not done(made.vm, 0):
            assert outbox.pass_on()
        assert outbox.pass_on() and outbox.released == (0, 51)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(address)
            again.settimeout(DEADLINE)
            post(made.vm, 0, Order("beacon", first=100, pages=4, n=1))
            assert wait(made.vm, 0, DEADLINE) and outbox.pass_on()
            assert again.recv(2000) == HEAD + (1).to_bytes(8, "little")


@pytest.mark.parametrize("kind", ["count", "beacon", "echo"])
def test_guests_notice_old_memory(machine: Make, kind: str, ends: tuple[UdpPair, socket.socket]) -> None:
    made = machine("kvm-bitmap")
    near, far = ends
    with Outbox(made.vm, net=near) as outbox:
        made.vm.resume()
        post(made.vm, 0, Order(kind, first=100, pages=8))
        if kind == "echo":
            answers(made.vm, outbox, far, b"one")
        else:
            run_on(made.vm, 0, 20)
        own, ended = made.ram.pages()[100:108], None
        deadline = time.monotonic() + DEADLINE
        while not ended:  # again, if it was stopped where it had just looked
            assert time.monotonic() < deadline
            with made.vm.paused():
                own -= own > 0
            far.send(b"two")
            made.vm.wait_event(0.1)
            ended = made.vm.vcpus[0].exit
            outbox.collect()
        assert (ended.reason, ended.code) == ("exit", 1)


def test_any_address_of_this_host(kvm: None) -> None:
    where = f"udp::{free_port()},127.0.0.1:{free_port()}"
    check_net(where)
    open_net(where).close()


def test_places_that_cannot_be(kvm: None) -> None:
    for bad in (
        "", "tap", "tap:", "tap:a/b", "tap:" + 16 * "x", "udp", "udp:1", "udp:127.0.0.1:1", "bus:1,2",
        "udp:127.0.0.1:1,127.0.0.1:x", "udp:127.0.0.1:65536,127.0.0.1:1", "udp:192.0.2.1:1,127.0.0.1:1",
        "udp:127.0.0.1:0,no.such.host.invalid:1", "udp:127.0.0.1:1,127.0.0.1:2,127.0.0.1:3",
    ):  # fmt: skip
        with pytest.raises(InvalidInputError):
            open_net(bad)
        if "192.0.2.1" in bad:
            check_net(bad)  # an address, but none of this host's
        else:
            with pytest.raises(InvalidInputError):
                check_net(bad)


def test_a_tap_without_rights(kvm: None, root: None) -> None:
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            open_net("tap:none0")
        except PermissionDeniedError as error:
            os._exit(0 if "root" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


TAP = """
import fcntl, socket, struct
from kvmglue import Order, Outbox, Tap, Vm, post
from uffdtrack import GuestRam

net = Tap("guest0")
host = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
host.bind(("guest0", 0x88B5))
host.settimeout(30)
with GuestRam(1 << 23, shared=False) as ram, Vm(ram) as vm, Outbox(vm, net=net) as outbox:
    vm.resume()
    post(vm, 0, Order("echo", pages=8))
    for text in (b"one", b"two"):
        question = bytes(6) + b"\\2\\0\\0\\0\\0\\2\\x88\\xb5" + text + bytes(60)
        host.send(question)
        while True:  # the host's own packets are answered, too
            outbox.pass_on()
            host.setblocking(False)
            try:
                got = host.recv(2000)
            except BlockingIOError:
                vm.wait_event(0.01)
                continue
            if got[22:] == question:
                break
    fcntl.ioctl(host, 0x8914, struct.pack("16sH22x", b"guest0", 0))  # SIOCSIFFLAGS: it is down
    print("answered", flush=True)
    try:
        net.send(bytes(60))
    except OSError as error:
        print(error.errno)
"""


def test_a_tap(kvm: None, root: None) -> None:
    """In a network namespace of its own."""
    command = ["unshare", "--net", sys.executable, "-c", TAP]
    root_directory = Path(__file__).parent.parent.parent
    told = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE * 2, cwd=root_directory)
    assert told.stdout.split() == ["answered", "5"], told.stderr


def test_from_the_command_line(uffdtrack: Run, kvm: None, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        far.settimeout(DEADLINE)
        place = f"udp:127.0.0.1:0,127.0.0.1:{far.getsockname()[1]}"
        uffdtrack("vm", "run", "beacon", "--until", 3, "--net", place)
        assert [int.from_bytes(far.recv(2000)[14:], "little") for _ in range(3)] == [1, 2, 3]
    out, again = tmp_path / "serial", tmp_path / "again"
    run = ("vm", "run", "count", "--until", 10, "--every", "5ms", "--serial", out, "-o", tmp_path / "c")
    assert not uffdtrack(*run).stdout
    truth = "".join(f"{n}\n" for n in range(1, 11))
    assert out.read_text() == truth
    again.write_text(truth[:-9] + "x" * 9)
    uffdtrack("vm", "resume", f"{tmp_path / 'c'}@2", "--serial", again)
    assert again.read_text() == truth, "it goes on at its place in the file"
    assert "No space" in uffdtrack("vm", "run", "count", "--serial", "/dev/full", code=7).stderr
