"""What a tracking mechanism promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Traits:
    """Attributes:
    name: the engine's name, for users and in files.
    per_vcpu: dirty lists say which vCPU wrote.
    forced_pause: how well it keeps a threshold. "exact": no user write goes beyond it.
    sees_kernel_copies: writes by system calls of a vCPU, such as read(2).
    sees_gup: writes of a vCPU through pinned pages: O_DIRECT, process_vm_writev. "audited": the engine
        misses them at first, then notices that, and one scan makes up for them.
    sees_outside: writes by threads that are no vCPU.
    exact: a page that was only read is never listed.
    cost: of one harvest.
    """

    name: str
    per_vcpu: bool
    forced_pause: Literal["exact", "bounded", "none"]
    sees_kernel_copies: bool
    sees_gup: bool | Literal["audited"]
    sees_outside: bool
    exact: bool
    cost: Literal["O(dirty)", "O(size)"]
