"""What a tracking mechanism promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Traits:
    """Attributes:
    name: the engine's name on the command line and in images.
    per_vcpu: dirty lists say which thread wrote.
    forced_pause: how well a threshold holds.
    sees_kernel_copies: writes by system calls such as read(2).
    sees_gup: writes through pinned pages: O_DIRECT, process_vm_writev, ptrace.
    cost: of one harvest.
    """

    name: str
    per_vcpu: bool
    forced_pause: Literal["exact", "bounded", "none"]
    sees_kernel_copies: bool
    sees_gup: bool
    cost: Literal["O(dirty)", "O(size)"]
