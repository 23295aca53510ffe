"""/dev/kvm, and what it offers on this host."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass

from kvmglue._sys import check, ffi, lib
from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError, UnsupportedError

DEVICE = "/dev/kvm"
SMALLEST_RING = 256
"""How many entries the smallest dirty ring has: it fills a page (virt/kvm/dirty_ring.c)."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What KVM offers on this host.

    Attributes:
        vcpus: of one VM.
        memslots: of one VM.
        ring_entries: of the largest dirty ring; 0: KVM has none.
        manual_clear: the dirty log can be cleared separately from reading it.
        xsave_bytes: of a vCPU's extended state.
    """

    vcpus: int
    memslots: int
    ring_entries: int
    manual_clear: bool
    xsave_bytes: int


class Kvm(Closing):
    """/dev/kvm. A context manager.

    Raises:
        UnsupportedError: there is no KVM, or it lacks something that we always need.
        PermissionDeniedError: we may not open it; the message names the fix.
    """

    def __init__(self, path: str = DEVICE) -> None:
        self.fd = check(lib.kg_open(os.fsencode(path)), f"open {path}")
        try:
            if not self._has(lib.KVM_CAP_IMMEDIATE_EXIT):
                raise UnsupportedError(f"{path} is no KVM, or one without immediate_exit (Linux 4.11)")
            ring = self._has(lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL) or self._has(lib.KVM_CAP_DIRTY_LOG_RING)
            self.capabilities = Capabilities(
                vcpus=min(self._has(lib.KVM_CAP_MAX_VCPUS), lib.KG_MAX_VCPUS),
                memslots=min(self._has(lib.KVM_CAP_NR_MEMSLOTS) - 1, lib.UT_MAX_SLOTS),
                ring_entries=ring // 16,
                manual_clear=self._has(lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) > 0,
                xsave_bytes=max(self._has(lib.KVM_CAP_XSAVE2), 4096),
            )
        except BaseException:
            self.close()
            raise

    def _has(self, capability: int) -> int:
        return max(int(lib.kg_check(self.fd, capability)), 0)

    def msrs(self) -> array[int]:
        """The model-specific registers that are part of a vCPU's state."""
        room = 1024
        indexes = ffi.new("uint32_t[]", room)
        n = check(lib.kg_msr_list(self.fd, indexes, room), "list the MSRs")
        return array("I", ffi.unpack(indexes, n))

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def check_ring(entries: int, capabilities: Capabilities) -> None:
    """Raises: UnsupportedError: no dirty ring here; InvalidInputError: not of that size."""
    most = capabilities.ring_entries
    if not most:
        raise UnsupportedError("this kernel's KVM has no dirty ring (Linux 5.11); see uffdtrack doctor")
    if entries & (entries - 1) or not SMALLEST_RING <= entries <= most:
        raise InvalidInputError(
            f"a dirty ring of {entries} entries: it takes a power of 2 from {SMALLEST_RING} to {most}"
        )
