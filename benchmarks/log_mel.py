"""Log-mel features of 30 minutes, 30 s and 4 s beside transformers and torch.stft."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from afnext import ops
from afnext.ops.reference import mel_filters

from .case import Case

THEIRS, STFT = "transformers WhisperFeatureExtractor", "torch.stft, one batch"

WINDOW = 480_000
TOLERANCE = 2e-4  # each is within 1e-4 of float64, see tests/ops/test_log_mel.py
# Multiplications and additions a frame of our kernel: window, 200-point complex transform and its split,
# mel filters, logarithms.
FLOPS_PER_FRAME = 400 + 7_250 + 2_000 + 800 + 3_200


def stft_log_mel(samples: Tensor, hann: Tensor, filters: Tensor) -> Tensor:
    """The features as a few torch calls over all padded windows ``[N, 480000]`` at once."""
    spectrum = torch.stft(samples, 400, 160, window=hann, return_complex=True)[..., :-1]
    logs = (filters @ spectrum.abs().square()).clamp(min=1e-10).log10()
    return (torch.maximum(logs, logs.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def recording(seconds: int) -> Case:
    """One recording cut into windows of 30 s."""
    samples = torch.randn(seconds * 16_000) * 0.1
    parts = samples.split(WINDOW)
    cu_samples = torch.tensor([0, *(len(p) for p in parts)]).cumsum(0)
    padded = torch.stack([torch.nn.functional.pad(p, (0, WINDOW - len(p))) for p in parts])
    arrays = [p.numpy() for p in parts]
    extractor = WhisperFeatureExtractor(feature_size=128)
    hann, filters = torch.hann_window(400), mel_filters().T.float().contiguous()

    def theirs() -> Tensor:
        out = extractor(
            arrays, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
        )
        return out["input_features"]

    def check() -> None:
        ours = ops.log_mel(samples, cu_samples, [3000] * len(parts))
        difference = float((ours - theirs().mT.flatten(0, 1)).abs().max())
        if not difference < TOLERANCE:
            raise AssertionError(
                f"features differ from transformers' by {difference:.2g}, more than {TOLERANCE}"
            )

    frames = seconds * 100
    return Case(
        f"{seconds} s",
        label="ops.log_mel",
        ours=lambda: ops.log_mel(samples, cu_samples),
        peers={
            THEIRS: theirs,
            STFT: lambda: stft_log_mel(padded, hann, filters),
        },
        flops=frames * FLOPS_PER_FRAME,
        bytes=samples.numel() * 4 + frames * 128 * 4,
        check=check,
        targets={THEIRS: 28.0, STFT: 15.0} if seconds > 100 else {},
        rounds=7 if seconds > 100 else 15,
        slow=seconds > 100,
    )


def cases() -> Iterator[Case]:
    """From a whole programme to a short clip."""
    for seconds in (1800, 30, 4):
        yield recording(seconds)
