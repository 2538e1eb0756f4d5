"""The exceptions that a user is meant to read."""

from __future__ import annotations

import errno

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """A mistake that the user can mend: one or two lines naming the mend; exits with 2."""


class RunFailed(Exception):
    """A run that started and could not finish (NaN loss, an attack that raised); exits with 1."""


def did_you_mean(name: str, known: list[str], limit: int = 2) -> str:
    """Return ``" Did you mean a, b?"`` for the names nearest to `name`, or an empty string."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=limit, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""


def full_disk(error: BaseException | None) -> OSError | None:
    """The failed write behind `error`, if a full disk, quota or file-size limit is its cause.

    ``torch.save`` for one raises a RuntimeError about positions while it handles the failed write.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        error = error.__cause__ or error.__context__
    return None
