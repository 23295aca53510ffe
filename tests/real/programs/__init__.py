"""Real programs, each with a load of its own, answers that are checked, and a state that is in its memory."""

from __future__ import annotations

from tests.real.programs.base import Program, Tool, descendants, used_ticks
from tests.real.programs.driven import Chromium, Qemu, Vim
from tests.real.programs.servers import Memcached, Nats, Nginx, Node, Redis
from tests.real.programs.talkers import Asyncio, Bash, Java, Sqlite, Threads

__all__ = ["ALL", "Program", "Redis", "Tool", "descendants", "used_ticks"]

ALL: list[type[Program]] = [
    Redis, Memcached, Nginx, Node, Java, Nats, Chromium, Qemu, Sqlite, Threads, Asyncio, Bash, Vim,
]  # fmt: skip
"""Postgres is in tests/kernel/test_postgres.py, ffmpeg in test_programs.py, looked at in other ways."""
