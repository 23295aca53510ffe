"""What ends of a replication are called in a broker's records."""

from __future__ import annotations

import os
import secrets

from checkpoint.replication.links.socket_channel import printable


def new_identity() -> str:
    """Of this process and of no other one, ever: its host, its number, and a random one."""
    return f"{os.uname().nodename}:{os.getpid()}:{secrets.token_hex(8)}"


def whose(identity: str) -> str:
    """For people."""
    match identity.split(":"):
        case [host, pid, _]:
            return printable(f"process {pid} of {host}")
    return printable(identity)
