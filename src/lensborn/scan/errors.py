"""The one error of a scan that is for the user: what was refused, and the remedy."""

import errno

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_FORBIDDEN = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))


class ScanError(ValueError):
    """A scan cannot start or go on; the message says why and what to do. What was judged before is kept."""


def cannot_write(folder: object, error: OSError) -> ScanError:
    """The ScanError for an error of the disk while something was written into `folder`."""
    if error.errno in _FULL:
        return ScanError(
            f"no space is left for {folder}: free some and run the same command again; what was written is kept"
        )
    if error.errno in _FORBIDDEN:
        return ScanError(f"{folder} may not be written: get the permission, or choose another folder")
    return ScanError(
        f"{folder} cannot be written ({error.strerror or type(error).__name__}): check the path and the disk, "
        "then run the same command again; what was written is kept"
    )
