"""Encoded audio that may be asked about again."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor


class AudioCache:
    """Audio tokens of windows, ``[n, hidden]`` behind the adaptor, the least recently used leaving first.

    A window is the unit, so recordings that begin alike share what is alike.

    Args:
        max_bytes: most that it holds; 0 keeps nothing.

    Attributes:
        nbytes: held now.
        hits, misses: windows that were found, or not.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = self.hits = self.misses = 0
        self._windows: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def get(self, key: bytes) -> Tensor | None:
        """A window's tokens, or None."""
        found = self._windows.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._windows.move_to_end(key)
        return found

    def put(self, key: bytes, tokens: Tensor) -> None:
        """Keep a window's tokens, and drop others for them; one larger than the cache is not kept."""
        if key in self._windows or tokens.nbytes > self.max_bytes:
            return
        self._windows[key] = tokens
        self.nbytes += tokens.nbytes
        while self.nbytes > self.max_bytes:
            _, dropped = self._windows.popitem(last=False)
            self.nbytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop everything."""
        self._windows.clear()
        self.nbytes = 0
