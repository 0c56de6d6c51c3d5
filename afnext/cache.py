"""Where afnext keeps on disk what takes long to make or to fetch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path | None:
    """``AFNEXT_CACHE``, else ``afnext`` in the user's cache folder; None where that is set to nothing."""
    named = os.environ.get("AFNEXT_CACHE")
    if named is not None:
        return Path(named).expanduser() if named else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "afnext"
