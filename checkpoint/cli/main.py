"""The console script: verbs, errors, exit codes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from importlib import import_module
from importlib.metadata import entry_points

import click

from checkpoint import report
from checkpoint.cli.common import say
from uffdtrack.errors import OutputError, UffdtrackError, UnsupportedError

VERBS = (
    "checkpoint", "compact", "diff", "doctor", "export", "keys", "ls", "rollback", "run", "show", "standby",
    "status", "switchover", "verify", "vm",
)  # fmt: skip
"""Each is the module of that name in checkpoint.cli."""


class Verbs(click.Group):
    """Our verbs, and those that other packages have registered. They are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = set(VERBS)
        for verb in entry_points(group="uffdtrack.verbs"):
            with contextlib.suppress(ImportError):
                verb.load()
                found.add(verb.name)
        return sorted(found)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        command: click.Command
        if name in VERBS:
            command = import_module(f"checkpoint.cli.{name}").command
            return command
        for verb in entry_points(group="uffdtrack.verbs", name=name):
            try:
                command = verb.load()
            except ImportError as error:
                raise UnsupportedError(f"{name} is not installed: {error}") from error
            return command
        return None


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="uffdtrack")
def cli() -> None:
    """Incremental checkpoints of live processes, on a stock Linux kernel.

    Exit codes: 0 done, 2 usage, 3 not supported on this host, 4 permission, 5 the target is gone or
    cannot be handled, 6 corrupt or incomplete image, 7 no space or write failure. Of run: the command's,
    where it has ended.
    """


def _open_standard_files() -> None:
    """Open closed descriptors below 3: else one would become a file of ours, and get our output."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):
        # PYTHONUNBUFFERED: what write(2) does not take would be lost, and nothing said.
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


def _end_output() -> None:
    """stdout has failed: drop what is left in its buffer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main() -> None:
    _open_standard_files()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files are bytes, and are shown as such.
            stream.reconfigure(errors="surrogateescape")
    try:
        status = cli.main(standalone_mode=False)
        with report.writing():
            sys.stdout.flush()
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        status = error.exit_code
    except click.ClickException as error:
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        say(f"error: {error.format_message()}" + (f" ({path} --help)" if path else ""))
        status = error.exit_code
    except OutputError as error:
        broken = isinstance(error.__cause__, BrokenPipeError)  # as by SIGPIPE: the reader has seen enough
        if not broken:
            say(f"error: {error}")
        status = 141 if broken else error.exit_code
        _end_output()
    except UffdtrackError as error:
        say(f"error: {error}")
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        status = 130
    except BrokenPipeError:
        # The reader of our output has gone; nothing more can be said there.
        _end_output()
        status = 141
    sys.exit(status if isinstance(status, int) else 0)
