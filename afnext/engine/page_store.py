"""Keys and values on disk: a prompt about yesterday's recording is read, not computed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import BoundedSemaphore, RLock

import torch
from torch import Tensor

from .allocator import PageAllocator
from .captures import CAPTURING
from .disk_cache import DiskCache
from .pages import PagePool

# ns by which each page counts as older than the one before: the end of a prompt, which is of no use without
# its beginning, leaves first.
OLDER = 1_000_000
# Windows that wait to be written, 5 MB each at 7B; where a disk is slower, others are not kept.
WINDOWS = 128


class PageStore:
    """Writes published pages to disk, and reads them into pages of a pool; writes encoded windows too.

    A page is found by its digest, which says all that comes before it, and by the pool's layout. Writing
    is done by a thread of its own; when the interpreter ends it is waited for.

    Args:
        disk: where pages are kept.
        allocator: of the pool's pages.
        lock: under which it is used.
    """

    def __init__(self, disk: DiskCache, allocator: PageAllocator, lock: RLock) -> None:
        self._disk, self._allocator, self._lock = disk, allocator, lock
        self._layout = b""
        self._closed = False
        self._room = BoundedSemaphore(WINDOWS)
        self._writer: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def restore(
        self, pool: PagePool, pages: Sequence[int], digests: Sequence[bytes], first: int
    ) -> int:
        """Fill ``pages`` with what ``digests`` stand for, up to the first that is not on disk.

        ``first`` is the place of ``pages[0]`` in its sequence. Returns how many were filled.
        """
        begun = time.time_ns()
        for done, (page, digest) in enumerate(zip(pages, digests, strict=True)):
            used = begun - (first + done) * OLDER
            data = self._disk.load(self._key(pool, digest), used, pool.page_bytes)
            if data is None:
                return done
            pool.write(page, data)
        return len(pages)

    def keep(self, pool: PagePool, digests: Sequence[bytes]) -> None:
        """Write the pages of a sequence, from its first one on, when there is time."""
        if not self._closed:
            self._later(self._write, pool, list(digests))

    def keep_window(self, key: bytes, tokens: Tensor) -> None:
        """Write the audio tokens of a window, when there is time; not where many wait for that."""
        if self._closed or not self._room.acquire(blocking=False):
            return
        if not self._later(self._write_window, key, tokens):
            self._room.release()

    def flush(self) -> None:
        """Wait until everything that is to be kept is on disk."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """Weights changed: what is published from now on is not to be written. The lock is held."""
        self._closed = True

    def forked(self) -> None:
        """In a child, which has no writer and leaves writing to its parent."""
        self._closed, self._last = True, None

    def _later(self, write: Callable[..., None], *arguments: object) -> bool:
        """Whether it will be written."""
        if not self._disk.writable:
            return False
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "afnext-pages")
        with suppress(RuntimeError):  # the program ends: nothing more is kept, and answers go on
            self._last = self._writer.submit(write, *arguments)
            return True
        return False

    @torch.inference_mode()
    def _write_window(self, key: bytes, tokens: Tensor) -> None:
        try:
            with CAPTURING:
                tokens = tokens.cpu()
            self._disk.save(key, tokens)
        finally:
            self._room.release()

    @torch.inference_mode()
    def _write(self, pool: PagePool, digests: list[bytes]) -> None:
        begun = time.time_ns()
        for number, digest in enumerate(digests):
            key, used = self._key(pool, digest), begun - number * OLDER
            if self._disk.has(key, used):
                continue
            # Nobody waits for a page to be written: one that was needed for something else is left out,
            # and what is published does not change while the lock is held. A copy from a GPU is none of a
            # capture's; it is waited for before the lock is taken, which others need meanwhile.
            with CAPTURING, self._lock:
                page = None if self._closed else self._allocator.find(digest)
                data = None if page is None else pool.read(page)
            if data is None or not self._disk.writable:
                return  # what comes behind it would not be found
            self._disk.save(key, data, used)

    def _key(self, pool: PagePool, digest: bytes) -> bytes:
        if not self._layout:
            parts = [f"{list(t.shape[1:])} {t.dtype}" for t in pool.tensors]
            self._layout = f"pages {parts}".encode()
        return hashlib.blake2b(self._layout + digest, digest_size=16).digest()
