"""Attention of one step over the pages of its sequences; the decoder's layers call it in turn."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from afnext import ops

from .pages import PagePool

LONG = 256  # queries from which a sequence's keys are worth laying side by side


class PagedAttend:
    """New keys are turned by their positions and appended, then the new queries see all before them.

    Args:
        pool: where the pages are.
        table: int32 ``[N, pages]``, on the host.
        ends: where sequences begin and end among the new tokens, from 0.
        starts: tokens each sequence holds already.
        inv_freq: float32 ``[D / 2]``.
    """

    def __init__(
        self, pool: PagePool, table: Tensor, ends: Items[int], starts: Items[int], inv_freq: Tensor
    ) -> None:
        self._pool = pool
        self._layer = 0
        # The batch stays on the host, where kernels on a GPU are told it from.
        self._table = table
        self._ends = torch.tensor(ends, dtype=torch.int32)
        self._start = torch.tensor(starts, dtype=torch.int32)
        self._lengths = self._start + self._ends.diff()
        spans = zip(starts, ends[:-1], ends[1:], strict=True)
        positions = torch.cat(
            [torch.arange(s, s + b - a, dtype=torch.float32) for s, a, b in spans]
        ).to(inv_freq.device)
        self._rotation = (positions, inv_freq)
        self._own = ops.Rotation(positions, positions, inv_freq)
        # Pages of 8 bits are read even so: what is said must not depend on who else is in the step.
        self._fresh = not any(starts) and pool.k_scales is None
        # The kernel for keys that lie in order is the faster, by more than laying them so takes.
        self._ordered: Tensor | None = None
        if not self._fresh and len(starts) == 1 and ends[1] >= LONG and pool.k_scales is None:
            self._seen = starts[0] + ends[1]
            used = table[0, : pool.pages_for(self._seen)]
            self._ordered = used.long().to(inv_freq.device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._pool.keys[self._layer], self._pool.values[self._layer]
        k_scales, v_scales = self._pool.scales(self._layer)
        self._layer += 1
        ops.paged_append(
            k, v, keys, values, self._table, self._ends, self._start, rotation=self._rotation,
            k_scales=k_scales, v_scales=v_scales,
        )  # fmt: skip
        if self._fresh:  # nothing but the new keys to see, and they still lie in order
            out, _ = ops.attention(
                q, k, v, cu_seqlens_q=self._ends, causal=True, rotation=self._own
            )
            return out
        if self._ordered is not None:
            turned = ops.rotate(q, *self._rotation)
            k, v = self._in_order(keys), self._in_order(values)
            return ops.attention(turned, k, v, causal=True)[0]
        out, _ = ops.paged_attention(
            q, keys, values, self._table, self._ends, self._lengths, rotation=self._rotation,
            k_scales=k_scales, v_scales=v_scales,
        )  # fmt: skip
        return out

    def _in_order(self, pages: Tensor) -> Tensor:
        """The one sequence's rows ``[T, Hkv, D]`` of a layer."""
        return pages.transpose(1, 2)[self._ordered].flatten(0, 1)[: self._seen]


class PlannedAttend:
    """As ``PagedAttend``, for whatever batch a plan was last told: what a captured step can call.

    Args:
        plan: of one new token a sequence.
        keys, values: a tensor a layer, as those of ``PagePool``, and so the scales.
        positions: int64 ``[N]``, of the new tokens.
        inv_freq: float32 ``[D / 2]``.
    """

    def __init__(
        self,
        plan: ops.PagedAttentionPlan,
        keys: Items[Tensor],
        values: Items[Tensor],
        scales: Items[tuple[Tensor | None, Tensor | None]],
        positions: Tensor,
        inv_freq: Tensor,
    ) -> None:
        self._plan = plan
        self._layers = iter(list(zip(keys, values, scales, strict=True)))
        self._rotation = (positions, inv_freq)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values, (k_scales, v_scales) = next(self._layers)
        self._plan.append(
            k, v, keys, values, rotation=self._rotation, k_scales=k_scales, v_scales=v_scales
        )
        out, _ = self._plan.attend(
            q, keys, values, rotation=self._rotation, k_scales=k_scales, v_scales=v_scales
        )
        return out
