"""Whose fault it is that a recording has no answer: its own, or the machine's."""

from __future__ import annotations

import errno
from pathlib import Path


class WorkerError(Exception):
    """What another process ran into that is no fault of the recording's; one line."""


# What is wrong with a path, and not with whoever opens it: too many open files, say.
_OF_A_PATH = frozenset((
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL,
))  # fmt: skip


def is_its_own(error: BaseException, folder: Path) -> bool:
    """Whether a recording would fail again, anywhere and any time, with what answering it raised.

    ``folder`` is where it lies: while that is gone, nothing is known of any recording.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno not in {None, *_OF_A_PATH}:
            return False
        cause = cause.__cause__
    return isinstance(error, ValueError | OSError) and folder.is_dir()


def explain(error: BaseException, path: Path) -> str:
    """What was wrong with a recording in a line, without its path."""
    lines = str(error).strip().splitlines()
    text = lines[0].removeprefix(f"{path}: ") if lines else ""
    expected = isinstance(error, ValueError | OSError | WorkerError)
    return text if text and expected else f"{type(error).__name__}: {text}".rstrip(": ")
