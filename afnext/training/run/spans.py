"""Spans of time in words."""

from __future__ import annotations

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


def said(seconds: float) -> str:
    """A span in the unit that suits it, as ``"40 s"``, ``"12 min"``, ``"3.4 h"``, ``"116 days"``."""
    if seconds < 1.5 * MINUTE:
        return f"{seconds:.2g} s"
    if seconds < 1.5 * HOUR:
        return f"{seconds / MINUTE:.2g} min"
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.2g} h"
    return f"{seconds / DAY:.3g} days"
