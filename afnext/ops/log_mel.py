"""Whisper's log-mel spectrogram of 30 s windows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import AnyArray, Array, call_detached, define, through_torch

WINDOW_SAMPLES = reference.WINDOW_SAMPLES
WINDOW_FRAMES = 3000
HOP = 160
MEL_BINS = 128


def _fake(samples: Tensor, cu_samples: list[int], frames: list[int]) -> Tensor:
    integers = samples.dtype == torch.int16 and samples.device.type != "cpu"
    check.require(
        (samples.dtype == torch.float32 or integers) and samples.dim() == 1,
        f"log_mel: samples must be float32 [S], got {check.describe(samples)}",
    )
    return _new(samples, frames)


def _new(samples: Tensor, frames: list[int]) -> Tensor:
    return torch.empty(sum(frames), MEL_BINS, dtype=torch.float32, device=samples.device)


def _kernel(samples: Tensor, cu_samples: list[int], frames: list[int]) -> Tensor:
    out = _new(samples, frames)
    compiled.log_mel(samples.contiguous(), cu_samples, frames, out)
    return out


OP = define(
    "log_mel(Tensor samples, SymInt[] cu_samples, SymInt[] frames) -> Tensor",
    kernel=_kernel,
    reference=reference.log_mel,
    fake=_fake,
    cuda=True,
)


def log_mel(
    samples: Array,
    cu_samples: AnyArray | None = None,
    frames: AnyArray | Sequence[int] | None = None,
) -> Array:
    """Log-mel features of packed windows, each zero-padded to 30 s as Whisper does.

    Periodic Hann window of 400 samples, hop 160, reflected ends of the 30 s, power spectrum, 128 slaney
    mel bins from 0 to 8 kHz, log10 clamped at 1e-10, floored at the window's maximum - 8 (over all 3,000
    frames), then ``(x + 4) / 4``. Equal to transformers' ``WhisperFeatureExtractor`` (transposed).
    A window that holds a NaN or an infinity is NaN in all of its frames; the others do not notice.

    Args:
        samples: float32 ``[S]``, 16 kHz mono, windows one after another; on other devices than the CPU also
            int16, worth 1 / 32768 each.
        cu_samples: int64 ``[N + 1]``, where windows begin and end; None is one window. At most 480,000
            samples each.
        frames: how many 10 ms frames to write for each window (at most 3,000); by default those that
            hold audio, ceil(n / 160). Frames past the audio are those of silence.

    Returns:
        float32 ``[sum(frames), 128]``.

    Raises:
        ValueError: naming the argument whose dtype, shape, device or value is wrong.
    """
    if not isinstance(samples, Tensor):
        return through_torch(log_mel, samples, cu_samples, frames)
    shape = samples.shape
    if len(shape) != 1:
        raise ValueError(f"log_mel: samples must be float32 [S], got {check.describe(samples)}")
    if cu_samples is None:
        ends = [0, shape[0]]
    else:
        if not isinstance(cu_samples, Tensor):
            got = type(cu_samples).__name__
            raise ValueError(f"log_mel: cu_samples must be a tensor, got {got}")
        check.offsets("log_mel", "cu_samples", cu_samples, torch.int64)
        ends = cu_samples.tolist()
    if ends[0] != 0 or ends[-1] != shape[0]:
        raise ValueError(
            f"log_mel: cu_samples must run from 0 to {shape[0]}, got {ends[0]} to {ends[-1]}"
        )
    lengths = [end - start for start, end in pairwise(ends)]
    if lengths and not 0 <= min(lengths) <= max(lengths) <= WINDOW_SAMPLES:
        raise ValueError(f"log_mel: cu_samples must cut windows of 0 to {WINDOW_SAMPLES} samples")
    if frames is None:
        counts = [-(-length // HOP) for length in lengths]
    else:
        counts = list(frames) if isinstance(frames, Sequence) else frames.tolist()
        fits = all(isinstance(count, int) and 0 <= count <= WINDOW_FRAMES for count in counts)
        if len(counts) != len(lengths) or not fits:
            raise ValueError(
                f"log_mel: frames must hold {len(lengths)} counts of 0 to {WINDOW_FRAMES}"
            )
    return call_detached(OP, samples, ends, counts)
