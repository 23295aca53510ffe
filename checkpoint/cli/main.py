"""The console script: verbs, errors, exit codes."""

from __future__ import annotations

import io
import os
import sys

import click

from checkpoint.cli import (
    bench,
    checkpoint,
    compact,
    diff,
    doctor,
    export,
    ls,
    rollback,
    run,
    show,
    verify,
    vm,
)
from checkpoint.cli.common import say
from uffdtrack.errors import UffdtrackError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="uffdtrack")
def cli() -> None:
    """Incremental checkpoints of live processes, on a stock Linux kernel.

    Exit codes: 0 done, 2 usage, 3 not supported on this host, 4 permission, 5 the target is gone or
    cannot be handled, 6 corrupt or incomplete image, 7 no space or write failure. Of run: the command's,
    where it has ended.
    """


for module in (doctor, checkpoint, run, ls, show, verify, diff, export, compact, rollback, vm, bench):
    cli.add_command(module.command)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files are bytes, and are shown as such.
            stream.reconfigure(errors="surrogateescape")
    try:
        status = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except UffdtrackError as error:
        say(f"error: {error}")
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        status = 130
    except BrokenPipeError:
        # The reader of our output has gone; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 141
    sys.exit(status if isinstance(status, int) else 0)
