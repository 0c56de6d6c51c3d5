"""Memory of keys and values, in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from afnext.model.config import TextConfig
from afnext.ops.runtime import expect_huge_pages


def page_bytes(config: TextConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page in every layer, keys and values."""
    row = config.num_key_value_heads * config.head_dim * dtype.itemsize
    return 2 * config.num_hidden_layers * page_size * row


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

    def pages_for(self, tokens: int) -> int:
        """How many pages ``tokens`` tokens take."""
        return -(-tokens // self.page_size)


class Sequence:
    """One sequence that has a pool to itself, from the first page on.

    Args:
        pool: with room for it.
        capacity: most tokens it will hold.

    Attributes:
        table: int32 ``[1, pages]``.
        length: tokens it holds.
    """

    def __init__(self, pool: PagePool, capacity: int) -> None:
        pages = pool.pages_for(capacity)
        if pages > pool.num_pages:
            raise MemoryError(f"the pool has {pool.num_pages} pages, {pages} are needed")
        self.pool = pool
        self.table = torch.arange(pages, dtype=torch.int32)[None]
        self.length = 0
