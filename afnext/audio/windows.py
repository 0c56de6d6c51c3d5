"""The unit of audio work: one window of at most 30 s that knows where it came from.

A window carries its own start through batching, caching and sharding, so that rotary time embeddings
never have to recover it from token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
HOP_LENGTH = 160
WINDOW_SECONDS = 30
WINDOW_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE
WINDOW_FRAMES = WINDOW_SAMPLES // HOP_LENGTH
TOKEN_SECONDS = 0.04
WINDOW_TOKENS = 750


def frames_in(samples: int) -> int:
    """Log-mel frames (10 ms) that hold at least one of ``samples`` samples: ceil(samples / 160)."""
    return -(-samples // HOP_LENGTH)


def tokens_in(frames: int) -> int:
    """Audio tokens (40 ms) for ``frames`` log-mel frames: a stride-2 convolution, then pooling by 2.

    Source: transformers ``AudioFlamingo3Encoder._get_feat_extract_output_lengths``.
    """
    return max(0, ((frames - 1) // 2 + 1 - 2) // 2 + 1) if frames > 0 else 0


@dataclass(frozen=True, slots=True, eq=False)
class AudioWindow:
    """At most 30 s of 16 kHz mono audio.

    Attributes:
        samples: float32 ``[n]``, n <= 480,000, nominally in [-1, 1]; never padded.
        start_sample: where the window begins in its recording, in samples.
        valid_samples: how many of ``samples`` are audio (all of them, unless a caller padded).
        recording: index of the recording within its conversation, from 0.
    """

    samples: NDArray[np.float32]
    start_sample: int
    valid_samples: int
    recording: int = 0

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise ValueError(
                f"AudioWindow: samples must be float32 [n], got {self.samples.dtype} "
                f"{list(self.samples.shape)}"
            )
        if not 0 <= self.valid_samples <= len(self.samples) <= WINDOW_SAMPLES:
            raise ValueError(
                f"AudioWindow: need 0 <= valid_samples <= len(samples) <= {WINDOW_SAMPLES}, got "
                f"valid_samples={self.valid_samples}, len(samples)={len(self.samples)}"
            )
        if self.start_sample < 0 or self.recording < 0:
            raise ValueError(
                f"AudioWindow: start_sample and recording must be >= 0, got "
                f"{self.start_sample} and {self.recording}"
            )

    @property
    def start_seconds(self) -> float:
        """Start of the window in its recording, in seconds."""
        return self.start_sample / SAMPLE_RATE

    @property
    def num_frames(self) -> int:
        """Log-mel frames of the valid samples."""
        return frames_in(self.valid_samples)

    @property
    def num_tokens(self) -> int:
        """Audio tokens of the valid samples; 0 for a window of at most 20 ms."""
        return tokens_in(self.num_frames)


def cut_windows(chunks: Iterable[NDArray[np.float32]], recording: int = 0) -> Iterator[AudioWindow]:
    """Cut 16 kHz mono float32 chunks ``[n]`` into windows of 30 s, the last one shorter.

    Samples are copied once, into their window. A last window that is too short for a token (at most
    20 ms behind a multiple of 30 s) is dropped, unless it is the only one. No samples: no windows.
    """
    start, filled = 0, 0
    buffer: NDArray[np.float32] | None = None
    for chunk in chunks:
        while len(chunk):
            if buffer is None:
                buffer = np.empty(WINDOW_SAMPLES, np.float32)
            taken = min(len(chunk), WINDOW_SAMPLES - filled)
            buffer[filled : filled + taken] = chunk[:taken]
            chunk, filled = chunk[taken:], filled + taken
            if filled == WINDOW_SAMPLES:
                yield AudioWindow(buffer, start, filled, recording)
                start, filled, buffer = start + filled, 0, None
    if buffer is not None and (start == 0 or tokens_in(frames_in(filled))):
        yield AudioWindow(buffer[:filled].copy(), start, filled, recording)
