"""uffdtrack vm run GUEST, uffdtrack vm resume DIR@N"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path

import click

from checkpoint import report
from checkpoint.chain_writer import ChainWriter
from checkpoint.cli.common import Place, say
from checkpoint.cli.diff import open_view
from checkpoint.cli.options import Options, session_options
from checkpoint.cli.take import take_epochs
from checkpoint.cli.waits import Interrupt
from checkpoint.session import Session
from checkpoint.targets.vm import VmTarget
from checkpoint.targets.vm_state import load_vm, vm_facts
from kvmglue import (
    PROGRAMS,
    VM_ENGINES,
    KvmTracker,
    Vm,
    bind_vcpus,
    done,
    open_tracker,
    post,
    programs,
    rings_for,
    written,
)
from uffdtrack import PAGE, GuestRam, UffdTracker, parse_size
from uffdtrack.errors import InvalidInputError

PERIOD = 0.05
"""Seconds between two looks at the serial port, if nothing else happens."""


def _ram(ctx: click.Context, param: click.Parameter, value: str) -> int:
    try:
        return parse_size(value)
    except InvalidInputError as error:
        raise click.BadParameter(str(error)) from error


@click.group("vm", short_help="Run, checkpoint and resume KVM guests.")
def command() -> None:
    """Run a guest on /dev/kvm, checkpoint it, continue it from an epoch."""


vm_options = session_options(
    "Take epochs into this directory. Without it the guest is not checkpointed.",
    False,
    list(VM_ENGINES),
    "kvm-ring",
    "docs/kvm.md",
    "Pause the guest and take an epoch as soon as so many pages are dirty, too.",
)


@command.command(
    "run",
    short_help="Run a guest.",
    epilog="Guests: " + "; ".join(f"{k}: {v.text}" for k, v in PROGRAMS.items()) + ".",
)
@click.argument("guest", type=click.Choice(list(PROGRAMS)), metavar="GUEST")
@click.option("--vcpus", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option("--ram", callback=_ram, default="64MiB", show_default=True, help="Size of the RAM.")
@click.option(
    "--until", type=click.IntRange(0, 1 << 62), default=0, help="End after so many numbers or operations."
)
@vm_options
def run(guest: str, vcpus: int, ram: int, until: int, options: Options) -> None:
    """Run a guest; what it prints on its serial port goes to stdout.

    It ends when the guest has, at --count, --duration or Ctrl-C, and the VM with it: --output has its epochs.
    """
    with ExitStack() as stack:
        memory = stack.enter_context(GuestRam(ram, shared=False))
        orders = programs(guest, vcpus, memory.size // PAGE, until)
        rings = rings_for(options.engine, vcpus, options.max_dirty)
        vm = stack.enter_context(Vm(memory, vcpus, ring_entries=rings))
        for vcpu, order in enumerate(orders):
            post(vm, vcpu, order)
        run_vm(vm, guest, options)


@command.command("resume", short_help="Continue the guest of an epoch.")
@click.argument("place", metavar="DIR@N", type=Place())
@vm_options
def resume(place: tuple[Path, int | None], options: Options) -> None:
    """Continue the guest of an epoch in this process, as if nothing had happened."""
    view = open_view(place, options.key)

    def make(ram: GuestRam, vcpus: int) -> Vm:
        return Vm(ram, vcpus, ring_entries=rings_for(options.engine, vcpus, options.max_dirty))

    with ExitStack() as stack:
        ram, vm = load_vm(view, make)
        stack.enter_context(ram)
        stack.enter_context(vm)
        say(f"epoch {view.epoch.epoch}: {len(view.pages)} pages, {len(vm.vcpus)} vCPUs")
        run_vm(vm, str(vm_facts(view.epoch).guest), options)


def run_vm(vm: Vm, guest: str, options: Options) -> None:
    """Run a paused VM to its end, and take its epochs if there is a directory."""
    if options.directory is None and (options.count or options.max_dirty or options.force):
        raise InvalidInputError("--count, --max-dirty and --force are of epochs: they go with --output")
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        if options.directory is None:
            vm.resume()
            wait_for_guest(vm, None, interrupt, options.duration, options.as_json)
            tell_verdict(vm, guest)
            return
        chain = stack.enter_context(ChainWriter(options.directory, options.key, options.force))
        tracker = open_tracker(vm, options.engine, max_dirty_pages=options.max_dirty)
        stack.callback(tracker.close)
        tracker.activate()
        bind_vcpus(tracker, vm)
        vm.resume()
        session = Session(VmTarget(vm, tracker, guest), chain, interrupt.seen)

        def wait(seconds: float) -> bool:
            return wait_for_guest(
                vm, tracker if options.max_dirty else None, interrupt, seconds, options.as_json
            )

        taken = take_epochs(session, options, interrupt, wait, lambda row: row.warnings)
        tracker.close()
        show_serial(vm, options.as_json)

    def text(summary: report.Summary) -> str:
        return f"{summary.span} in {options.directory}; {summary.pauses}"

    taken.conclude(text, tell=say)  # stdout is the guest's
    tell_verdict(vm, guest)


def wait_for_guest(
    vm: Vm,
    tracker: KvmTracker | UffdTracker | None,
    interrupt: Interrupt,
    seconds: float | None,
    as_json: bool,
) -> bool:
    """Show what the guest prints for some seconds, or until its dirty pages reach the limit.

    Returns:
        Whether the session has to end: it was interrupted, or the guest has ended.
    """
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        show_serial(vm, as_json)
        vm.check()
        ended = [vcpu.exit for vcpu in vm.vcpus if vcpu.exit]
        if ended:
            if any(e.code for e in ended):
                say(f"the guest has ended with code {max(e.code for e in ended)}")
            return True
        if interrupt.seen() or done(vm, 0):
            show_serial(vm, as_json)
            return True
        if interrupt.woken():
            return False
        left = PERIOD if end is None else min(end - time.monotonic(), PERIOD)
        if left <= 0:
            return False
        if tracker is None:
            vm.wait_event(left)
        elif tracker.wait_full(left):
            return False


def tell_verdict(vm: Vm, guest: str) -> None:
    """Of a guest that checks itself: what it has found. One whose structure is torn ends with code 1."""
    if guest != "check" or any(vcpu.exit and vcpu.exit.code for vcpu in vm.vcpus):
        return
    done = [written(vm, vcpu) for vcpu in range(len(vm.vcpus))]
    looks = sum(n // vcpu.mailbox.pace for n, vcpu in zip(done, vm.vcpus, strict=True))
    times = f"{looks} look{'s' * (looks != 1)}"
    say(f"{times} of the guest at what {sum(done)} operations have made: nothing torn")


def show_serial(vm: Vm, as_json: bool) -> None:
    """Print it to stdout, or, if that is for JSON, to stderr."""
    out = sys.stderr if as_json else sys.stdout
    with report.writing():
        out.write(vm.serial().decode("ascii", "replace"))
        out.flush()
