"""Fixtures: programs to checkpoint, and what this host must be able to do for a test."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.preloaded import Preloaded
from uffdtrack import PROCESS_ENGINES, choose_for_process, probe
from uffdtrack.errors import UnsupportedError

# How long an example takes, or is being made, says how busy the host is.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")

PROGRAMS = Path(__file__).parent / "programs"
REQUIRE = os.environ.get("UFFDTRACK_REQUIRE")
"""Unset: a missing kernel feature or program skips its tests. 1: it fails them. 0: they are not run."""


def pytest_collection_finish() -> None:
    """Thousands of tests and their modules stay: they need not be looked through again and again."""
    gc.freeze()


def missing(reason: str) -> None:
    if REQUIRE == "1":
        pytest.fail(f"required here (UFFDTRACK_REQUIRE=1): {reason}")
    pytest.skip(reason)


def _inherited_signals() -> list[str]:
    """Those that are blocked and ignored: a program that we start has them so, too."""
    status = Path("/proc/thread-self/status").read_text()
    return [line for line in status.splitlines() if line.startswith(("SigBlk:", "SigIgn:"))]


@pytest.fixture(autouse=True)
def signals_stay() -> Iterator[None]:
    """A test that leaves SIGTERM ignored breaks a later one, which ends a program by it."""
    before = _inherited_signals()
    yield
    assert _inherited_signals() == before


@pytest.fixture(scope="session")
def kernel() -> None:
    """The test needs a kernel on which processes can be tracked, and ptrace."""
    if REQUIRE == "0":
        pytest.skip("UFFDTRACK_REQUIRE=0")
    features = probe()
    if not features.scan:
        missing("userfaultfd WP_ASYNC and PAGEMAP_SCAN")
    if features.ptrace:
        missing(f"ptrace: {features.ptrace}")


def usable(engine: str) -> str:
    try:
        return choose_for_process(engine, probe()).name
    except UnsupportedError as error:
        missing(str(error))
        raise


@pytest.fixture(params=list(PROCESS_ENGINES))
def process_engine(request: pytest.FixtureRequest, kernel: None) -> str:
    """Each engine for attached processes."""
    return usable(request.param)


@pytest.fixture(params=["ring", "sync"])
def following(request: pytest.FixtureRequest, kernel: None) -> str:
    """Each engine for attached processes that follows faults."""
    return usable(request.param)


@pytest.fixture(scope="session")
def root(kernel: None) -> None:
    if os.geteuid():
        missing("root")


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """The path of a program of the host's, by name."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if not path:
            missing(f"the program {name}")
        assert path
        return path

    return find


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile tests/programs/NAME.c with NAME_*.c, once for all workers of a session."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "programs"
    directory.mkdir(exist_ok=True)

    def compiled(name: str, *flags: str) -> Path:
        out = directory / "".join((name, *flags))
        if not out.exists():
            sources = [PROGRAMS / f"{name}.c", *sorted(PROGRAMS.glob(f"{name}_*.c"))]
            own = out.with_name(f"{out.name}.{os.getpid()}")
            command = ["cc", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", *flags, "-o", own]
            subprocess.run([*command, *sources], check=True)
            # Another worker may have been at it as well, and a program that runs must keep its file.
            with suppress(FileExistsError):
                out.hardlink_to(own)
            own.unlink()
        return out

    return compiled


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory on tmpfs, for chains of many epochs that are not about the disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="uffdtrack-test-") as directory:
        yield Path(directory)


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process that is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: object, **options: object) -> subprocess.Popen[bytes]:
        options.setdefault("stdin", subprocess.PIPE)
        options.setdefault("stdout", subprocess.PIPE)
        process = subprocess.Popen([str(a) for a in argv], **options)  # type: ignore[call-overload]
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    with Preloaded() as preloaded:
        yield preloaded


def start_anew(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "checkpoint", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def starts(preloaded: Preloaded) -> Callable[..., subprocess.CompletedProcess[str]]:
    """How the command line is started."""
    return lambda *words, **options: start_anew(*words, **options) if options else preloaded.run(*words)


@pytest.fixture
def uffdtrack(
    starts: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line and give back what it said."""

    def run(*argv: object, code: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
        done = starts(*map(str, argv), **options)
        assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run
