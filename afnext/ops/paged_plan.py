"""A batch and its pages, told once a step and read by every layer; on CUDA, through captured graphs too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check as check
from ._compiled import compiled
from ._library import outputs
from .attention import NO_WINDOW, window_bounds
from .paged_append import paged_append
from .paged_attention import head_dim, paged_attention
from .rotate import as_times

Rotation = tuple[Tensor, Tensor]


class PagedAttentionPlan:
    """``paged_append`` and ``paged_attention`` for a batch that is described once.

    ``update`` checks a batch on the host, as the two ops do; ``append`` and ``attend`` then serve every
    layer. On CUDA ``update`` sends the batch by one asynchronous copy to memory that stays where it is, and
    the other two allocate nothing (given ``out`` and ``lse``), never wait, and launch grids that depend on
    the limits alone: captured in a CUDA graph they serve whatever batch the plan was last updated with, on
    the same stream, outside of the capture. Neither differentiable nor for two threads at once.

    A request's result depends on the request and on ``max_splits``, not on the rest of the batch. A page id
    that is written over on the device is not followed (zeros are read): the next ``update``, or ``check``,
    raises ``ValueError`` that names the request.

    Args:
        k_pages: ``[P, Hkv, slot, D]``; those of all layers have this shape and device.
        heads: Hq.
        max_requests: of a batch.
        max_pages: of a request.
        max_queries: new tokens of a request; 1 is decode.
        max_tokens: new tokens of a batch; ``max_requests * max_queries`` unless given.
        max_splits: parts that a request's keys are split into. On CUDA partial results take
            ``4 * max_splits * Hq * (D + 1)`` bytes for each token that decodes.
        causal, window: as in ``paged_attention``.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        k_pages: Tensor,
        heads: int,
        *,
        max_requests: int,
        max_pages: int,
        max_queries: int = 1,
        max_tokens: int | None = None,
        max_splits: int = 32,
        causal: bool = True,
        window: tuple[int, int] | None = None,
    ) -> None:
        left, right = NO_WINDOW if window is None else window_bounds("paged_attention", window)
        self._like = k_pages
        self._masks: dict[str, Any] = {"causal": causal, "window": window}
        self._batch: tuple[Tensor, Tensor, Tensor] | None = None
        # Devices without kernels of ours: the ops in plain torch.
        device = k_pages.device.type
        self._plan = None
        if device == "cpu" or (device == "cuda" and compiled.has_cuda):
            self._plan = compiled.PagedAttentionPlan(
                k_pages, heads, max_requests, max_pages, max_queries, max_tokens or 0, max_splits,
                causal, left, right,
            )  # fmt: skip

    def update(self, page_table: Tensor, cu_seqlens: Tensor, kv_lengths: Tensor) -> None:
        """Take a batch, on the CPU.

        Args:
            page_table: int32 ``[N, max_pages]``.
            cu_seqlens: int32 ``[N + 1]``, where requests begin and end among the new tokens.
            kv_lengths: int32 ``[N]``, tokens each request holds, the new ones among them.
        """
        if self._plan is not None:
            self._plan.update(self._like, page_table, cu_seqlens, kv_lengths)
        self._batch = (page_table, cu_seqlens, kv_lengths)

    def append(
        self,
        k: Tensor,
        v: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        rotation: Rotation | None = None,
        interleaved: bool = False,
        k_scales: Tensor | None = None,
        v_scales: Tensor | None = None,
    ) -> None:
        """Write the batch's new tokens, as ``paged_append`` does.

        k and v ``[T, Hkv, D]`` may have more rows than the batch has tokens.
        """
        if self._plan is not None:
            times, inv_freq = self._turn(rotation)
            self._plan.append(
                k, v, k_pages, v_pages, times, inv_freq, interleaved, k_scales, v_scales
            )
            return
        table, cu_seqlens, lengths = self._held()
        now = slice(0, int(cu_seqlens[-1]))
        if rotation is not None:
            rotation = (rotation[0][now], rotation[1])
        paged_append(
            k[now], v[now], k_pages, v_pages, table, cu_seqlens, lengths - cu_seqlens.diff(),
            rotation=rotation, interleaved=interleaved, k_scales=k_scales, v_scales=v_scales,
        )  # fmt: skip

    def attend(
        self,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        *,
        softmax_scale: float | None = None,
        rotation: Rotation | None = None,
        interleaved: bool = False,
        k_scales: Tensor | None = None,
        v_scales: Tensor | None = None,
        out: Tensor | None = None,
        lse: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention of the batch's new tokens, as ``paged_attention`` gives it.

        q ``[T, Hq, D]`` may have more rows than the batch has tokens: what out ``[T, Hq, D]`` and lse
        ``[Hq, T]`` hold for those is not defined. Both are allocated unless given.
        """
        dim = head_dim(q)
        if out is None or lse is None:
            new_out, new_lse = outputs(q)
            out, lse = new_out if out is None else out, new_lse if lse is None else lse
        if self._plan is not None:
            scale = (dim or 1) ** -0.5 if softmax_scale is None else softmax_scale
            times, inv_freq = self._turn(rotation)
            self._plan.attend(
                q, k_pages, v_pages, times, inv_freq, interleaved, scale, k_scales, v_scales, out, lse
            )  # fmt: skip
            return out, lse
        table, cu_seqlens, lengths = self._held()
        now = slice(0, int(cu_seqlens[-1]))
        if rotation is not None:
            rotation = (rotation[0][now], rotation[1])
        out[now], lse[:, now] = paged_attention(
            q[now], k_pages, v_pages, table, cu_seqlens, lengths, softmax_scale=softmax_scale,
            rotation=rotation, interleaved=interleaved, k_scales=k_scales, v_scales=v_scales,
            **self._masks,
        )  # fmt: skip
        return out, lse

    def check(self) -> None:
        """Wait for the device's work, and raise if a kernel met a bad page since the last ``update``."""
        if self._plan is not None:
            self._plan.check(self._like)

    def _held(self) -> tuple[Tensor, Tensor, Tensor]:
        check.require(self._batch is not None, "paged_attention: the plan has no batch: update it")
        assert self._batch is not None
        return self._batch

    def _turn(self, rotation: Rotation | None) -> tuple[Tensor | None, Tensor | None]:
        if rotation is None:
            return None, None
        times, inv_freq = rotation
        # CUDA's kernels read integers as they are: a cast is a launch of its own, a layer.
        direct = times.device.type == "cuda" and times.dtype in (torch.int32, torch.int64)
        return times if direct else as_times(times), inv_freq
