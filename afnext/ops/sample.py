"""Drawing tokens from logits: temperature, the cuts, and a draw by numbers that the caller gives."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import AnyArray, Array, call_detached, define, through_torch


def _fake(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> tuple[Tensor, Tensor]:
    check.floating("sample", "logits", logits, 2)
    rows = logits.shape[0]
    check.require(
        1 <= logits.shape[1] <= 2**23,
        f"sample: logits must be [B, V] with V from 1 to 2**23, got {check.describe(logits)}",
    )
    check.typed("sample", "temperature", temperature, torch.float32, (rows,))
    check.typed("sample", "top_k", top_k, torch.int32, (rows,))
    check.typed("sample", "top_p", top_p, torch.float32, (rows,))
    check.typed("sample", "min_p", min_p, torch.float32, (rows,))
    check.typed("sample", "uniform", uniform, torch.float32, (rows,))
    return logits.new_empty(rows, dtype=torch.int64), logits.new_empty(rows, dtype=torch.float32)


def _kernel(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> tuple[Tensor, Tensor]:
    rows = logits.shape[:1]
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    compiled.sample(logits, temperature, top_k, top_p, min_p, uniform, tokens, logprobs)
    return tokens, logprobs


OP = define(
    "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, "
    "Tensor uniform) -> (Tensor, Tensor)",
    kernel=_kernel,
    reference=reference.sample,
    fake=_fake,
    cuda=True,
)


def sample(
    logits: Array,
    temperature: Array,
    top_k: AnyArray,
    top_p: Array,
    min_p: Array,
    uniform: Array,
) -> tuple[Array, Array]:
    """Draw a token a row from ``softmax(logits / temperature)``, cut to its likeliest tokens.

    The cuts are transformers' (``TopKLogitsWarper``, ``TopPLogitsWarper``, ``MinPLogitsWarper``) in its
    order, each of what the one before has left; equally likely tokens are kept or dropped together. What
    is left is laid end to end, the likeliest first and equals by id, and the token is drawn where
    ``uniform`` of the whole is reached: a row's numbers alone decide, on every device and in any batch.

    Args:
        logits: float32 or bfloat16 ``[B, V]``, V up to 2**23, unit stride in V; NaN counts as -inf.
        temperature: float32 ``[B]``; 0 takes the likeliest token, of equals the first.
        top_k: int32 ``[B]``, keep the k likeliest; 0 keeps all.
        top_p: float32 ``[B]``, keep the likeliest that together reach this probability; 1 keeps all.
        min_p: float32 ``[B]``, drop those below this share of the likeliest's probability; 0 drops none.
        uniform: float32 ``[B]``, random numbers in [0, 1).

    Returns:
        (tokens, logprobs): int64 ``[B]``, and float32 ``[B]``, the log-probability of each token under
        ``softmax(logits / temperature)`` before the cuts (temperature 0: under ``softmax(logits)``).

    Raises:
        ValueError: naming the argument whose dtype, shape, stride or device is wrong.
    """
    if not isinstance(logits, Tensor):
        return through_torch(sample, logits, temperature, top_k, top_p, min_p, uniform)
    return call_detached(OP, logits, temperature, top_k, top_p, min_p, uniform)
