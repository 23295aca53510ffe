"""The only importer of this package's compiled core; turns -errno into exceptions."""

from __future__ import annotations

import errno
import os

from kvmglue._native._core import ffi, lib
from uffdtrack.errors import PermissionDeniedError, TrackerError, UnsupportedError

__all__ = ["check", "ffi", "lib"]


def check(result: int, doing: str) -> int:
    """Turn a negative errno of the core into the exception that fits `doing`."""
    if result >= 0:
        return result
    code = -result
    why = os.strerror(code)
    if code in (errno.EPERM, errno.EACCES):
        raise PermissionDeniedError(
            f"cannot {doing}: {why}. Run as root, or as a user who may open /dev/kvm (group kvm)"
        )
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        raise UnsupportedError(f"cannot {doing}: no KVM here ({why}); see uffdtrack doctor")
    if code in (errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP):
        raise UnsupportedError(f"cannot {doing}: this kernel's KVM lacks it ({why}); see uffdtrack doctor")
    raise TrackerError(f"cannot {doing}: {why}")
