"""The compiled module; the only place that imports it."""

from __future__ import annotations

from typing import Any

try:
    from afnext import _C
except ImportError as error:  # a broken or half-finished installation
    raise ImportError(
        f"afnext's compiled module is missing or does not load ({error}); install it: pip install ."
    ) from error

# Its stub says what there is; here tensors of several kinds pass through with *args.
compiled: Any = _C

__all__ = ["compiled"]
