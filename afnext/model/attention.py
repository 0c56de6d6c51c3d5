"""How a layer's queries meet its keys: packed sequences through ops, or a dense mask through torch.

One of these is built per forward and handed to every layer. Each takes q ``[..., Hq, D]`` and k, v
``[..., Hkv, D]`` and returns the same shape as q.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops
from afnext.ops import reference

# Below this many keys, in training, two matrix products and a softmax beat the fused kernel on a CPU.
SMALL = 1024


class Rope:
    """Half-split rotary embedding in plain torch with float32 phases, for paths without ops.

    Args:
        positions: float32 ``[...]``.
        inv_freq: float32 ``[D / 2]``.
    """

    def __init__(self, positions: Tensor, inv_freq: Tensor) -> None:
        angles = reference.phases(positions.reshape(-1), inv_freq).float()
        angles = angles.view(*positions.shape, 1, -1)
        self.cos, self.sin = angles.cos(), angles.sin()

    def __call__(self, x: Tensor) -> Tensor:
        """Turn ``x [..., H, D]``; computed in float32, returned in x's dtype."""
        a, b = x.float().chunk(2, dim=-1)
        turned = torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), dim=-1)
        return turned.to(x.dtype)


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Batched attention in plain torch: q ``[B, S, Hq, D]``, k, v ``[B, S, Hkv, D]``.

    ``mask``: bool, True where a query sees a key, broadcast to ``[B, Hq, S, S]``.
    """
    group = q.shape[2] // k.shape[2]
    if group > 1:
        k, v = (t.repeat_interleave(group, dim=2) for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if torch.is_grad_enabled() and k.shape[2] <= SMALL:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        out = scores.softmax(dim=-1).to(v.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2)


class Packed:
    """Attention within each of several sequences laid one after another.

    Args:
        lengths: of the sequences.
        cu_seqlens: int32 ``[N + 1]``, their running sum; built from ``lengths`` where not given.
        causal: a token sees no later one.
        positions: ``[T]``, turns q and k; with ``inv_freq`` float32 ``[D / 2]``.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        cu_seqlens: Tensor | None = None,
        causal: bool = False,
        positions: Tensor | None = None,
        inv_freq: Tensor | None = None,
    ) -> None:
        if cu_seqlens is None:
            cu_seqlens = _running_sum(lengths)
        self.cu_seqlens, self.causal = cu_seqlens, causal
        self.rotation: ops.Rotation | None = None
        if positions is not None and inv_freq is not None:
            times = positions.float()
            self.rotation = ops.Rotation(times, times, inv_freq)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, _ = ops.attention(
            q, k, v, cu_seqlens_q=self.cu_seqlens, causal=self.causal, rotation=self.rotation
        )
        return out


class Branches:
    """Causal attention of sequences that begin alike: each trunk once, then its branches.

    A branch sees its trunk and itself, as if the two were one sequence; branches do not see one another.
    What they compute of the trunk is shared, so that many questions about one recording cost it once.
    Tokens lie as all trunks one after another, then all branches, those of one trunk together.

    Args:
        trunks: lengths; 0 where branches begin with nothing in common.
        branches: for each trunk the lengths of its branches.
        positions: ``[T]``, turns q and k; a branch's go on from its trunk's.
        inv_freq: float32 ``[D / 2]``.
    """

    def __init__(
        self,
        trunks: Sequence[int],
        branches: Sequence[Sequence[int]],
        positions: Tensor,
        inv_freq: Tensor,
    ) -> None:
        if len(trunks) != len(branches):
            raise ValueError(f"branches: {len(branches)} lists for {len(trunks)} trunks")
        self.first = sum(trunks)
        own = [*trunks, *(length for group in branches for length in group)]
        self.own = _running_sum(own)
        self.trunks = _running_sum(trunks)
        self.groups = _running_sum([sum(group) for group in branches])
        times = positions.float()
        self.rotation = ops.Rotation(times, times, inv_freq)
        self.across = ops.Rotation(times[self.first :], times[: self.first], inv_freq)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = ops.attention(
            q, k, v, cu_seqlens_q=self.own, causal=True, rotation=self.rotation
        )
        if self.first in (0, q.shape[0]):
            return out
        first = self.first
        seen, seen_lse = ops.attention(
            q[first:], k[:first], v[:first], cu_seqlens_q=self.groups, cu_seqlens_k=self.trunks,
            rotation=self.across,
        )  # fmt: skip
        merged, _ = ops.merge_attention(out[first:], lse[:, first:].contiguous(), seen, seen_lse)
        return torch.cat((out[:first], merged))


def _running_sum(lengths: Sequence[int]) -> Tensor:
    """On the host: kernels on a GPU are told from there, and copying it waits for the device."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


class Dense:
    """Attention under an arbitrary mask, in plain torch: q ``[B, S, Hq, D]``.

    Args:
        mask: bool ``[B, 1, S, S]`` (or what broadcasts to it), True where a query sees a key; every
            query must see at least one.
        positions: ``[B, S]``.
        inv_freq: float32 ``[D / 2]``.
    """

    def __init__(self, mask: Tensor, positions: Tensor, inv_freq: Tensor) -> None:
        self.mask, self.rope = mask, Rope(positions.float(), inv_freq)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax_attention(self.rope(q), self.rope(k), v, mask=self.mask)


class Attend(Protocol):
    """What a decoder layer calls: any of these, or what shares a sequence among processes."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...
