"""How much is held on a disk, and a full one told from other failures, behind whatever wrapped it."""

import errno
import os

VERSIONS_HELD = 2
"""Of the weights, on the learner's host: the one that engines serve and the one that is being staged."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space left, over the user's quota, over the size that a file may have."""


def disk_full(error: BaseException | None) -> OSError | None:
    """Return the OSError of a full disk in an error's chain of causes; None where there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def names_full_disk(error: BaseException) -> bool:
    """Tell whether an error is that of a full disk, also where only its text has come from another process."""
    return disk_full(error) is not None or any(os.strerror(code) in str(error) for code in DISK_FULL)
