"""uffdtrack vm run GUEST, uffdtrack vm resume DIR@N"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from checkpoint import report
from checkpoint.chain_writer import ChainWriter
from checkpoint.cli.common import Place, say
from checkpoint.cli.devices import Devices, device_options
from checkpoint.cli.diff import open_view
from checkpoint.cli.options import Options, session_options
from checkpoint.cli.replicate_options import WhereTo, replicate_options
from checkpoint.cli.take import take_epochs
from checkpoint.cli.waits import Interrupt
from checkpoint.session import Session
from checkpoint.targets.vm import VmTarget
from checkpoint.targets.vm_output import output_up_to
from checkpoint.targets.vm_state import load_vm, vm_facts
from checkpoint.targets.vm_stop import track
from kvmglue import (
    PROGRAMS,
    VM_ENGINES,
    KvmTracker,
    Outbox,
    Vm,
    done,
    engine_for,
    huge_for,
    post,
    programs,
    rings_for,
    written,
)
from uffdtrack import PAGE, GuestRam, UffdTracker, parse_size
from uffdtrack.errors import InvalidInputError, OutputError, PauseTimeoutError

PERIOD = 0.05
"""Seconds between two looks at the devices, if nothing else happens."""
LAST = 5.0
"""At the end, a reader of the serial port gets so many seconds for the next bytes."""


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
    ["auto", *VM_ENGINES],
    "auto",
    "docs/kvm.md",
    "Pause the guest and take an epoch as soon as so many pages are dirty, too.",
    at_output=True,
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
@device_options
@replicate_options
@vm_options
def run(
    guest: str,
    vcpus: int,
    ram: int,
    until: int,
    devices: Devices,
    replicate: WhereTo | None,
    options: Options,
) -> None:
    """Run a guest; what it prints on its serial port goes to stdout.

    It ends when the guest has, at --count, --duration or Ctrl-C, and the VM with it: --output has its epochs.
    """
    options = with_engine(options)
    with ExitStack() as stack:
        memory = stack.enter_context(GuestRam(ram, shared=False, huge=huge_for(options.engine)))
        orders = programs(guest, vcpus, memory.size // PAGE, until)
        rings = rings_for(options.engine, vcpus, options.max_dirty)
        vm = stack.enter_context(Vm(memory, vcpus, ring_entries=rings))
        outbox = stack.enter_context(devices.open(vm, options.as_json))
        for vcpu, order in enumerate(orders):
            post(vm, vcpu, order)
        run_vm(vm, outbox, guest, options, replicate)


@command.command("resume", short_help="Continue the guest of an epoch.")
@click.argument("place", metavar="DIR@N", type=Place())
@device_options
@replicate_options
@vm_options
def resume(
    place: tuple[Path, int | None], devices: Devices, replicate: WhereTo | None, options: Options
) -> None:
    """Continue the guest of an epoch in this process, as if nothing had happened."""
    options = with_engine(options)
    view = open_view(place, options.key)

    def make(ram: GuestRam, vcpus: int) -> Vm:
        return Vm(ram, vcpus, ring_entries=rings_for(options.engine, vcpus, options.max_dirty))

    with ExitStack() as stack:
        ram, vm = load_vm(view, make, huge_for(options.engine))
        stack.enter_context(ram)
        stack.enter_context(vm)
        outbox = stack.enter_context(devices.open(vm, options.as_json, output_up_to(view.sources)))
        say(f"epoch {view.epoch.epoch}: {len(view.pages)} pages, {len(vm.vcpus)} vCPUs")
        run_vm(vm, outbox, str(vm_facts(view.epoch).guest), options, replicate)


def with_engine(options: Options) -> Options:
    """The options, with an engine for "auto". Raises: UnsupportedError, PermissionDeniedError: see `Kvm`."""
    return replace(options, engine=engine_for(options.max_dirty)) if options.engine == "auto" else options


def run_vm(vm: Vm, outbox: Outbox, guest: str, options: Options, replicate: WhereTo | None) -> None:
    """Run a paused VM to its end; take its epochs if there is a directory, or a standby that gets them."""
    if options.directory is None and not replicate and (options.count or options.max_dirty or options.force):
        raise InvalidInputError("--count, --max-dirty and --force are of epochs: they go with --output")
    if options.at_output and not replicate:
        raise InvalidInputError("--every output goes with --replicate: otherwise no output is held")
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        if options.directory is None and not replicate:
            vm.resume()
            wait_for_guest(vm, passing_on(outbox), None, interrupt, options.duration)
            pass_on_rest(outbox)
            tell_verdict(vm, guest)
            return
        tracker = track(vm, options.engine, options.max_dirty)
        stack.callback(tracker.close)
        passing = passing_on(outbox)

        def wait(seconds: float, look: Callable[[], bool] = passing) -> bool:
            return wait_for_guest(vm, look, tracker if options.max_dirty else None, interrupt, seconds)

        if replicate:
            from checkpoint.cli.replicate_vm import replicate_vm

            replicate_vm(vm, outbox, tracker, guest, interrupt, options, replicate, wait)
            tell_verdict(vm, guest)
            return
        assert options.directory
        chain = stack.enter_context(ChainWriter(options.directory, options.key, options.force))
        vm.resume()
        session = Session(VmTarget(vm, tracker, guest, outbox), chain, interrupt.seen)

        taken = take_epochs(session, options, interrupt, wait, lambda row: row.warnings)
        tracker.close()
        if not taken.untold:
            pass_on_rest(outbox)

    def text(summary: report.Summary) -> str:
        return f"{summary.span} in {options.directory}; {summary.pauses}"

    taken.conclude(text, tell=say)  # stdout is the guest's
    tell_verdict(vm, guest)


def wait_for_guest(
    vm: Vm,
    look: Callable[[], bool],
    tracker: KvmTracker | UffdTracker | None,
    interrupt: Interrupt,
    seconds: float | None,
) -> bool:
    """Wait for some seconds, or until the guest's dirty pages reach the limit.

    Args:
        look: called whenever the guest may have sent something; True: wait no longer.

    Returns:
        Whether the session has to end: it was interrupted, or the guest has ended.
    """
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        is_due = look()
        ended = [vcpu.exit for vcpu in vm.vcpus if vcpu.exit]
        vm.check()  # behind it: one may fail meanwhile
        if ended:
            if any(e.code for e in ended):
                say(f"the guest has ended with code {max(e.code for e in ended)}")
            return True
        if interrupt.seen() or done(vm, 0):
            return True
        if interrupt.woken() or is_due:
            return False
        left = PERIOD if end is None else min(end - time.monotonic(), PERIOD)
        if left <= 0:
            return False
        if tracker is None:
            vm.wait_event(left)
        elif is_full(tracker, left):
            return False


def is_full(tracker: KvmTracker | UffdTracker, seconds: float) -> bool:
    """Wait until the limit is reached. A vCPU that does not stop in time for it: the window tries again."""
    try:
        return tracker.wait_full(seconds)
    except PauseTimeoutError:
        return True


def tell_verdict(vm: Vm, guest: str) -> None:
    """Of a guest that checks itself: what it has found. One whose structure is torn ends with code 1."""
    if guest != "check" or any(vcpu.exit and vcpu.exit.code for vcpu in vm.vcpus):
        return
    done = [written(vm, vcpu) for vcpu in range(len(vm.vcpus))]
    looks = sum(n // vcpu.mailbox.pace for n, vcpu in zip(done, vm.vcpus, strict=True))
    times = f"{looks} look{'s' * (looks != 1)}"
    say(f"{times} of the guest at what {sum(done)} operations have made: nothing torn")


def passing_on(outbox: Outbox) -> Callable[[], bool]:
    """The `look` of a guest whose output is not held."""

    def look() -> bool:
        outbox.pass_on()
        return False

    return look


def pass_on_rest(outbox: Outbox) -> None:
    """Pass on what is left. Raises: OutputError: nobody takes it."""
    until, before = time.monotonic() + LAST, outbox.released
    while not outbox.pass_on():
        if outbox.released != before:
            until, before = time.monotonic() + LAST, outbox.released
        if time.monotonic() > until:
            raise OutputError(f"nobody has read the guest's output for {LAST:.0f} s, and we have to end")
        time.sleep(PERIOD)
