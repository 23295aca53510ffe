"""Signals that come while a tracker sets traps: no page is without one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from kvmglue import Order, post
from tests.kvm.conftest import Machine, run_on

SECONDS = 0.5


@contextmanager
def signals() -> Iterator[None]:
    """This thread gets one after the other."""
    before, ends = signal.signal(signal.SIGUSR2, lambda *_: None), threading.Event()
    main = threading.main_thread().ident
    assert main

    def send() -> None:
        while not ends.is_set():
            signal.pthread_kill(main, signal.SIGUSR2)
            time.sleep(0)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
        signal.signal(signal.SIGUSR2, before)


STOPPER = """
import os, select, signal, sys
pid = int(sys.argv[1])
while not select.select([0], [], [], 0)[0]:
    os.kill(pid, signal.SIGSTOP)
    while open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "T":
        pass
    os.kill(pid, signal.SIGCONT)
"""


@contextmanager
def stops() -> Iterator[None]:
    """This process is stopped and goes on, again and again."""
    stopper = [sys.executable, "-c", STOPPER, str(os.getpid())]
    with subprocess.Popen(stopper, stdin=subprocess.PIPE):  # at the end its input is closed
        yield


@pytest.mark.parametrize("interrupted", [signals, stops])
def test_no_page_is_without_a_trap(
    interrupted: Callable[[], AbstractContextManager[None]], machine: Callable[..., Machine], vm_engine: str
) -> None:
    """KVM_RESET_DIRTY_RINGS is ended by a signal, and has reset entries whose traps it has not set then."""
    made = machine(vm_engine)
    shadow = made.ram.pages().copy()
    post(made.vm, 0, Order("check", first=0, pages=600, pace=1 << 60))
    made.vm.resume()
    until = time.monotonic() + SECONDS
    with interrupted():
        while time.monotonic() < until:
            run_on(made.vm, 0, 300)
            made.vm.pause()
            made.copy_to(shadow)
            made.vm.resume()
    run_on(made.vm, 0, 5000)
    made.vm.pause()
    made.copy_to(shadow)
    assert made.stale(shadow) == []
