"""The objectives are what they say, against torch's own losses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from afnext.training.data import frame_targets
from afnext.training.loss import alignment_loss, answer_loss, clock_loss, frame_loss
from afnext.training.synthesis import CLASSES, Event


def test_answers_without_times_are_weighted_cross_entropy() -> None:
    logits, targets = torch.randn(6, 20), torch.arange(6)
    weights = torch.rand(6)
    wanted = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
    got = answer_loss(logits, targets, weights, torch.arange(10, 20))
    torch.testing.assert_close(got, wanted)


def test_a_time_credits_its_neighbours() -> None:
    """Equal to cross-entropy with the smoothed distribution; mass past the ends stays on the end."""
    logits, times = torch.randn(2, 30), torch.arange(10, 20)
    smooth = torch.zeros(2, 30)
    smooth[0, 12:17] = torch.tensor([0.05, 0.15, 0.6, 0.15, 0.05])
    smooth[1, 10:13] = torch.tensor([0.8, 0.15, 0.05])
    got = answer_loss(logits, torch.tensor([14, 10]), torch.ones(2), times)
    torch.testing.assert_close(got, F.cross_entropy(logits, smooth))


def test_frame_labels_lie_where_the_events_do() -> None:
    target = frame_targets([[Event("siren", 0.4, 1.0)], []], 50)
    k = CLASSES.index("siren")
    assert target[0, :, k].nonzero()[:, 0].tolist() == list(range(10, 25))  # 40 ms each
    onset = target[0, :, len(CLASSES) + k]
    assert onset[9:12].tolist() == pytest.approx([0.3, 1.0, 0.3])
    assert target.sum() == pytest.approx(15 + 1.6)
    assert frame_loss((target - 0.5) * 40, target) < frame_loss(torch.zeros_like(target), target)


def test_alignment_wants_audio_near_the_word_that_names_it() -> None:
    words = torch.eye(len(CLASSES))
    active = F.one_hot(torch.tensor([[0, 1, 2]]), len(CLASSES)).float()
    aligned = alignment_loss(active, words, active)
    assert aligned < 0.1 < 0.5 < alignment_loss(active.roll(1, -1), words, active)


def test_the_clock_wants_each_token_near_its_own_time() -> None:
    times = torch.eye(601)
    due = times[[0, 1, 1, 1, 2]][None]  # token centres: 0.02, 0.06, 0.10, 0.14, 0.18 s
    right = clock_loss(due, times)
    assert right < 0.01 < 5 < clock_loss(due.flip(1), times)
