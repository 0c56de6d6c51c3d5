"""Memory of keys and values: a pool of pages, handed out and taken back."""

from __future__ import annotations

import torch
from torch import Tensor

from afnext.model.config import TextConfig
from afnext.ops.runtime import expect_huge_pages


class PagePool:
    """Pages of every layer of a decoder.

    Keys and values lie apart, ``[pages, Hkv, slot, D]`` a layer. On a CPU the memory of a page is not
    touched, and so not taken from the system, before it is used.

    Args:
        config: geometry of the decoder.
        num_pages: pages of each layer.
        page_size: tokens a page holds.
        dtype, device: of keys and values.
    """

    def __init__(
        self,
        config: TextConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_pages, config.num_key_value_heads, page_size, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys: list[Tensor] = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.values: list[Tensor] = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        for pages in (*self.keys, *self.values):
            expect_huge_pages(pages)
        self.page_size = page_size
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def pages_for(self, tokens: int) -> int:
        """How many pages ``tokens`` tokens take."""
        return -(-tokens // self.page_size)

    def take(self, count: int) -> list[int]:
        """Take ``count`` pages, or none at all when there are not so many."""
        if count > len(self._free):
            raise MemoryError(f"the cache has {len(self._free)} free pages, {count} are needed")
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        """Return pages that ``take`` handed out."""
        self._free.extend(reversed(pages))


class Sequence:
    """One request's place in the pool: its pages in order, and how many tokens they hold."""

    def __init__(self, pool: PagePool, capacity: int) -> None:
        self.pool = pool
        self.pages = pool.take(pool.pages_for(capacity))
        self.table = torch.tensor([self.pages], dtype=torch.int32)
        self.length = 0

    def release(self) -> None:
        """Give the pages back; calling it again does nothing."""
        self.pool.give_back(self.pages)
        self.pages = []
