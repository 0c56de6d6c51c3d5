"""The three objectives: answers, frame labels, and audio close to the words that name it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afnext.audio.windows import TOKEN_SECONDS
from afnext.training.synthesis import CLASSES

TIME_SMOOTHING = ((0, 0.6), (-1, 0.15), (1, 0.15), (-2, 0.05), (2, 0.05))
"""How the target mass of a time is shared with its neighbours 0.1 s apart."""


class FrameHead(nn.Linear):
    """Class activity and onsets at 25 Hz from encoder features; used in training, never exported."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2 * len(CLASSES))


def answer_loss(logits: Tensor, targets: Tensor, weights: Tensor, times: Tensor) -> Tensor:
    """Weighted next-token loss; a time also credits its neighbours.

    Args:
        logits: [N, vocabulary]; targets: int64 [N]; weights: float32 [N].
        times: int64 [601], the ids of the time tokens in order, consecutive.
    """
    log_p = F.log_softmax(logits.float(), -1)
    first, last = int(times[0]), int(times[-1])
    is_time = (targets >= first) & (targets <= last)
    loss = -log_p.gather(1, targets[:, None])[:, 0]
    near = torch.zeros_like(loss)
    for shift, mass in TIME_SMOOTHING:
        moved = (targets + shift).clamp(first, last)
        near = near - mass * log_p.gather(1, moved[:, None])[:, 0]
    loss = torch.where(is_time, near, loss)
    return (loss * weights).sum() / weights.sum()


def frame_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Ten times the mean binary cross-entropy; onsets, which are rare, weigh five times."""
    weights = torch.ones_like(targets)
    classes = len(CLASSES)
    weights[..., classes:] += 4 * (targets[..., classes:] > 0)
    return 10 * F.binary_cross_entropy_with_logits(logits.float(), targets, weight=weights)


def alignment_loss(audio: Tensor, words: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of (cosine of adaptor output and class word, x16 - 5) against activity.

    Args:
        audio: [B, T, D]; words: [classes, D]; targets: [B, T, classes] in 0..1.
    """
    cosine = F.normalize(audio.float(), dim=-1) @ F.normalize(words.float(), dim=-1).T
    return 3 * F.binary_cross_entropy_with_logits(16 * cosine - 5, targets)


def clock_loss(audio: Tensor, times: Tensor) -> Tensor:
    """Cross-entropy of (cosine of adaptor output and time embeddings, x20) against each token's time.

    Args:
        audio: [B, T, D], one token every 40 ms.
        times: [601, D], embeddings of 0.0 s, 0.1 s, ...; they are not moved by this loss.
    """
    logits = 20 * F.normalize(audio.float(), dim=-1) @ F.normalize(times.detach(), dim=-1).T
    seconds = (torch.arange(audio.shape[1]) + 0.5) * TOKEN_SECONDS
    target = (10 * seconds).round().long().clamp(max=len(times) - 1)
    return F.cross_entropy(logits.flatten(0, 1), target.repeat(audio.shape[0]))
