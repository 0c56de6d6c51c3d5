"""Encoded audio that may be asked about again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from torch import Tensor

from .disk_cache import DiskCache

Save = Callable[[bytes, Tensor], object]


class AudioCache:
    """Audio tokens of windows, ``[n, hidden]`` behind the adaptor, the least recently used leaving first.

    A window is the unit, so recordings that begin alike share what is alike. Threads may share one.

    Args:
        max_bytes: most that it holds; 0 keeps nothing.
        store: where windows of earlier runs are, or None.
        save: takes windows that are to be kept for later runs, when there is time.

    Attributes:
        nbytes: held now.
        hits, misses: windows that were found, or not; those found in the store are hits.
        evictions: windows that had to go.
    """

    def __init__(
        self, max_bytes: int, store: DiskCache | None = None, save: Save | None = None
    ) -> None:
        self.max_bytes, self.store, self._save = max_bytes, store, save
        self.nbytes = self.hits = self.misses = self.evictions = 0
        self._windows: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._windows)

    def get(self, key: bytes) -> Tensor | None:
        """A window's tokens, or None."""
        with self._lock:
            found = self._windows.get(key)
            if found is not None:
                self._windows.move_to_end(key)
        store = self.store
        if found is None and store is not None and (found := store.load(key)) is not None:
            self._hold(key, found)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, key: bytes, tokens: Tensor) -> None:
        """Keep a window's tokens, and drop others for them; one larger than the cache is not held."""
        self._hold(key, tokens)
        if (save := self._save) is not None:
            save(key, tokens)

    def forked(self) -> None:
        """In a child, where a thread that held the lock is gone."""
        self._lock = Lock()

    def _hold(self, key: bytes, tokens: Tensor) -> None:
        with self._lock:
            if key in self._windows or tokens.nbytes > self.max_bytes:
                return
            self._windows[key] = tokens
            self.nbytes += tokens.nbytes
            while self.nbytes > self.max_bytes:
                _, dropped = self._windows.popitem(last=False)
                self.nbytes -= dropped.nbytes
                self.evictions += 1

    def forget(self) -> None:
        """The weights changed: nothing encoded so far is true, nor is what the store holds."""
        self.store = self._save = None
        self.clear()

    def clear(self) -> None:
        """Drop everything that is held; the store stays."""
        with self._lock:
            self._windows.clear()
            self.nbytes = 0
