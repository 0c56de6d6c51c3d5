"""The loss of answers: of the next token, with what is near a time told from what is far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

TIME_SMOOTHING = ((0, 0.6), (-1, 0.15), (1, 0.15), (-2, 0.05), (2, 0.05))
"""How the target mass of a time is shared with its neighbours 0.1 s apart."""
CHUNK = 2048
"""Rows of logits at a time: 1.2 GB in float32 with 152K pieces."""


def answer_losses(logits: Tensor, targets: Tensor, times: Sequence[int]) -> Tensor:
    """float32 ``[N]``: next-token losses; a time also credits its neighbours.

    Args:
        logits: ``[N, vocabulary]``; targets: int64 ``[N]``.
        times: the ids of the time tokens in order, consecutive; empty where there are none.
    """
    log_p = F.log_softmax(logits.float(), -1)
    loss = -log_p.gather(1, targets[:, None])[:, 0]
    if len(times):
        first, last = times[0], times[-1]
        near = torch.zeros_like(loss)
        for shift, mass in TIME_SMOOTHING:
            moved = (targets + shift).clamp(first, last)
            near = near - mass * log_p.gather(1, moved[:, None])[:, 0]
        loss = torch.where((targets >= first) & (targets <= last), near, loss)
    return loss


def chunked_answer_losses(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, times: Sequence[int]
) -> Tensor:
    """The same of ``head``'s logits of hidden states ``[N, hidden]``, some at a time, computed again
    backward: of 128K rows of 152K logits never more than a chunk is there.
    """

    def of(rows: slice) -> Tensor:
        return answer_losses(head(hidden[rows]), targets[rows], times)

    if len(hidden) <= CHUNK:
        return of(slice(None))
    parts = [
        checkpoint(of, slice(first, first + CHUNK), use_reentrant=False)
        for first in range(0, len(hidden), CHUNK)
    ]
    return torch.cat(parts)
