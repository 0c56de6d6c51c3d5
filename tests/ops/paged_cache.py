"""A paged cache filled by hand, as hostile as the contract allows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from afnext import ops
from tests.ops.attention_oracle import Case, offsets


@dataclass
class Cache:
    """Pages ``[P, Hkv, slot, D]``, the table ``[N, max_pages]`` and the tokens each request holds."""

    k_pages: Tensor
    v_pages: Tensor
    table: Tensor
    lengths: Tensor

    def gather(self, pages: Tensor, n: int) -> Tensor:
        """The tokens of request n, ``[length, Hkv, D]``, one by one."""
        slots, length = pages.shape[2], int(self.lengths[n])
        rows = [pages[self.table[n, t // slots], :, t % slots] for t in range(length)]
        return torch.stack(rows) if rows else pages.new_zeros(0, pages.shape[1], pages.shape[3])


def empty_cache(
    lengths: list[int], heads: int, slots: int, dim: int, dtype: torch.dtype = torch.float32
) -> Cache:
    """Room for ``lengths`` tokens: pages in random order and full of NaN, garbage past the table's end."""
    used = [-(-length // slots) for length in lengths]
    pool = torch.randperm(sum(used) + 3).tolist()
    table = torch.full((len(lengths), max([*used, 0]) + 2), -(2**31), dtype=torch.int32)
    for n, count in enumerate(used):
        table[n, :count] = torch.tensor([pool.pop() for _ in range(count)], dtype=torch.int32)
        table[n, count] = 2**31 - 1
    k_pages, v_pages = (
        torch.full((sum(used) + 3, heads, slots, dim), torch.nan).to(dtype) for _ in range(2)
    )
    return Cache(k_pages, v_pages, table, torch.tensor(lengths, dtype=torch.int32))


def fill(case: Case, slots: int) -> Cache:
    """The keys (as they are) and values of ``case`` in pages, written token by token."""
    _, heads, dim = case.k.shape
    cache = empty_cache(case.lengths_k, heads, slots, dim, case.k.dtype)
    starts = offsets(case.lengths_k).tolist()
    for n, length in enumerate(case.lengths_k):
        for t in range(length):
            page = int(cache.table[n, t // slots])
            cache.k_pages[page, :, t % slots] = case.k[starts[n] + t]
            cache.v_pages[page, :, t % slots] = case.v[starts[n] + t]
    return cache


def attend(case: Case, cache: Cache) -> tuple[Tensor, Tensor]:
    """``ops.paged_attention`` on a case whose keys the cache holds."""
    rotation = None if case.inv_freq is None else (case.times_q, case.inv_freq)
    return ops.paged_attention(
        case.q, cache.k_pages, cache.v_pages, cache.table, offsets(case.lengths_q), cache.lengths,
        causal=case.causal, window=case.window, rotation=rotation, interleaved=case.interleaved,
    )  # fmt: skip
