"""Memory of keys and values, in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from afnext.model.config import TextConfig
from afnext.ops.runtime import expect_huge_pages

# How keys and values may be kept, by the names that a caller gives.
KV_CACHE_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
SCALE_BYTES = 4  # float32, one a token, head and layer for keys and one for values


def kv_dtype(name: str | None, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What pages hold: ``dtype``, that of the weights, unless ``name`` says otherwise.

    Raises:
        ValueError: no such name, or the device cannot.
    """
    if name is None:
        return dtype
    if name not in KV_CACHE_DTYPES:
        known = ", ".join(KV_CACHE_DTYPES)
        raise ValueError(f"kv_cache_dtype: must be one of {known}, got {name!r}")
    if name == "fp8" and device.type != "cuda":
        raise ValueError(f"kv_cache_dtype: fp8 needs CUDA, got device {device!s}: take int8")
    return KV_CACHE_DTYPES[name]


def page_bytes(config: TextConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page in every layer: keys and values, and where they have 8 bits their scales."""
    row = config.head_dim * dtype.itemsize
    if dtype in KV_CACHE_DTYPES.values():
        row += SCALE_BYTES
    return 2 * config.num_hidden_layers * page_size * config.num_key_value_heads * row


class PagePool:
    """Pages of every layer of a decoder.

    Keys and values lie apart, ``[pages, Hkv, slot, D]`` a layer. Of 8 bits, they have scales, float32
    ``[pages, Hkv, slot]`` a layer. On a CPU the memory of a page is not
    touched, and so not taken from the system, before it is used.

    Args:
        config: geometry of the decoder.
        num_pages: pages of each layer.
        page_size: tokens a page holds.
        dtype, device: of keys and values.

    Attributes:
        keys, values: a tensor a layer.
        k_scales, v_scales: a tensor a layer, or None where they have more than 8 bits.
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
        self.k_scales: list[Tensor] | None = None
        self.v_scales: list[Tensor] | None = None
        if dtype in KV_CACHE_DTYPES.values():
            self.k_scales, self.v_scales = (
                [torch.empty(shape[:3], device=device) for _ in layers] for _ in "kv"
            )
        self.page_size = page_size
        self.num_pages = num_pages

    def scales(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """Those of one layer's keys and values, or None where they have none."""
        if self.k_scales is None or self.v_scales is None:
            return None, None
        return self.k_scales[layer], self.v_scales[layer]

    @property
    def tensors(self) -> list[Tensor]:
        """All that pages are made of, ``[pages, ...]`` each."""
        return [*self.keys, *self.values, *(self.k_scales or ()), *(self.v_scales or ())]

    @property
    def page_bytes(self) -> int:
        """Of one page in all of them."""
        return sum(t[0].nbytes for t in self.tensors)

    def read(self, page: int) -> Tensor:
        """A copy of a page's bytes in every layer, uint8 ``[page_bytes]``, on the CPU."""
        parts = [t[page].reshape(-1).view(torch.uint8) for t in self.tensors]
        return torch.cat(parts).cpu()

    def write(self, page: int, data: Tensor) -> None:
        """Fill a page with what ``read`` gave.

        Raises:
            ValueError: ``data`` is not as large as a page.
        """
        places = [t[page] for t in self.tensors]
        sizes = [p.nbytes for p in places]
        if data.dtype != torch.uint8 or data.shape != (sum(sizes),):
            raise ValueError(
                f"data: must be uint8 [{sum(sizes)}], got {data.dtype} {list(data.shape)}"
            )
        for place, part in zip(places, data.split(sizes), strict=True):
            # A part may begin anywhere; a copy is aligned.
            place.copy_(part.clone().view(place.dtype).view(place.shape))

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
