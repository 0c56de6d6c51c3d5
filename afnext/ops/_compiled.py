"""The compiled module; the only place that imports it."""

from __future__ import annotations

try:
    from afnext import _C as compiled
except ImportError:
    compiled = None

__all__ = ["compiled"]
