"""The packed encoder equals transformers' padded one, window by window, and pays only for audio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from afnext.audio.windows import AudioWindow, tokens_in
from afnext.model import AudioBatch
from afnext.model.audio_batch import frames_needed

# Around every rounding of the convolution and the pooling, and at the edge of the window.
LENGTHS = [3, 4, 5, 6, 7, 8, 99, 100, 101, 102, 1500, 2996, 2997, 2998, 2999, 3000]


def features_of(lengths: list[int], seed: int = 0) -> list[Tensor]:
    """For each length 3,000 frames of random features, like silence past the audio but not constant,
    so that an encoder that read one frame too few or too many would show.
    """
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3000, 128, generator=generator) for _ in lengths]


def pack(full: list[Tensor], lengths: list[int], **kwargs: Any) -> AudioBatch:
    parts = [f[: frames_needed(n)] for f, n in zip(full, lengths, strict=True)]
    count = len(lengths)
    return AudioBatch.pack(torch.cat(parts), lengths, [0.0] * count, [0] * count, 1, **kwargs)


def encode(encoder: torch.nn.Module, batch: AudioBatch) -> Tensor:
    return torch.cat([encoder(batch.features[p.frames], p) for p in batch.plans])


def padded(theirs: Any, full: list[Tensor], lengths: list[int]) -> Tensor:
    """transformers' encoder on padded windows; the valid tokens, packed."""
    mask = torch.arange(3000)[None] < torch.tensor(lengths)[:, None]
    features = torch.stack(full).transpose(1, 2)
    with torch.no_grad():
        out = theirs(features, input_features_mask=mask.long()).last_hidden_state
    return torch.cat([o[: tokens_in(n)] for o, n in zip(out, lengths, strict=True)])


@torch.no_grad()
@pytest.mark.parametrize("max_windows", [1, 100])
def test_equals_padded(flamingo: Any, max_windows: int) -> None:
    full = features_of(LENGTHS)
    expected = padded(flamingo.theirs.model.audio_tower, full, LENGTHS)
    got = encode(flamingo.ours.audio_tower, pack(full, LENGTHS, max_windows=max_windows))
    assert expected.abs().max() > 1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("length", [99, 100])
def test_edge_frames_matter(flamingo: Any, length: int) -> None:
    """A proof that the comparison above sees the edge: the last needed frame zeroed shows."""
    full = features_of([length])
    batch = pack(full, [length])
    reads = batch.plans[0].conv1
    last = int(reads[reads < len(batch.features)].max())
    assert last in (length, length + 1)  # beyond the audio, within what is written
    batch.features[last] = 0
    expected = padded(flamingo.theirs.model.audio_tower, full, [length])
    got = encode(flamingo.ours.audio_tower, batch)
    assert (got - expected).abs().max() > 1e-3


@torch.no_grad()
def test_audio_features(
    pair: Any, clip: Callable[..., list[AudioWindow]], their_features: Any, prompt: Any
) -> None:
    """From samples through mel, encoder, RoTE and adaptor: 4 s, 30 s and 95 s (four windows)."""
    for seconds in (4.0, 30.0, 95.0):
        windows = clip(seconds)
        ids = torch.tensor([prompt(windows)])
        inputs = their_features(windows)
        extra = {"input_ids": ids} if pair.ours.config.model_type == "musicflamingo" else {}
        expected = pair.theirs.get_audio_features(**inputs, **extra).pooler_output
        got = pair.ours.encode(AudioBatch.collate([windows]))
        # 1e-5 of the features' own scale (they leave the adaptor at about 5).
        torch.testing.assert_close(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@torch.no_grad()
def test_wrong_window_index_would_show(flamingo: Any, clip: Any) -> None:
    """The same second window taken for a first one: the features move by far more than 1e-5."""
    windows = clip(35.0)
    right = flamingo.ours.encode(AudioBatch.collate([windows]))[750:]
    second = windows[1]
    lost = AudioWindow(second.samples, 0, second.valid_samples)
    wrong = flamingo.ours.encode(AudioBatch.collate([[lost]]))
    assert right.shape == wrong.shape
    assert (right - wrong).abs().max() > 0.1


def test_work_follows_the_clip(clip: Any) -> None:
    """A clip of 4 s takes 402 frames and 200 positions, not 3,000 and 1,500."""
    plan = AudioBatch.collate([clip(4.0)]).plans[0]
    assert plan.frames == slice(0, 402)
    assert len(plan.conv1) == 400
    assert plan.lengths == (200,)
    assert len(plan.pooled) == 100


@torch.no_grad()
def test_long_audio_is_encoded_in_pieces(flamingo: Any, clip: Any) -> None:
    windows = clip(95.0)
    whole = flamingo.ours.encode(AudioBatch.collate([windows]))
    pieces = AudioBatch.collate([windows], max_windows=1)
    assert len(pieces.plans) == 4
    torch.testing.assert_close(flamingo.ours.encode(pieces), whole, atol=1e-5, rtol=0)


def test_trains_under_autocast(flamingo: Any, clip: Any) -> None:
    """bf16 autocast: close to float32 and every weight gets a finite gradient."""
    net = flamingo.ours
    batch = AudioBatch.collate([clip(2.0), clip(3.1, 1)])
    with torch.no_grad():
        exact = net.encode(batch)
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rough = net.encode(batch)
        rough.float().square().mean().backward()
    # bf16 keeps 8 bits; a few dozen roundings stay within some percent of the largest feature.
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    for module in (net.audio_tower, net.multi_modal_projector):
        for name, p in module.named_parameters():
            if "embed_positions" not in name:
                assert p.grad is not None, name
                assert bool(p.grad.isfinite().all()), name
                assert bool((p.grad != 0).any()), name
    net.zero_grad()


def test_gradients_equal_transformers(flamingo: Any) -> None:
    """In float32, outside autocast: gradients of the packed encoder are those of the padded one."""
    lengths = [57, 120]
    full = features_of(lengths, seed=3)
    theirs, ours = flamingo.theirs.model.audio_tower, flamingo.ours.audio_tower
    mask = torch.arange(3000)[None] < torch.tensor(lengths)[:, None]
    out = theirs(
        torch.stack(full).transpose(1, 2), input_features_mask=mask.long()
    ).last_hidden_state
    expected = torch.cat([o[: tokens_in(n)] for o, n in zip(out, lengths, strict=True)])
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal(expected.shape)).float()
    (expected * weight).sum().backward()
    (encode(ours, pack(full, lengths)) * weight).sum().backward()
    grads = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        if p.grad is None:
            continue
        # Sums over all positions in another order: 1e-4 of the largest entry.
        scale = float(p.grad.abs().max())
        mine = grads[name].grad
        assert mine is not None
        torch.testing.assert_close(mine, p.grad, atol=1e-4 * scale, rtol=0, msg=name)
    ours.zero_grad()
    theirs.zero_grad()
