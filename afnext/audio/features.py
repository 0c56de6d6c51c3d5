"""Samples in, log-mel features out, in one pass over audio of any length."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .info import AudioSource
from .loading import stream_windows
from .windows import AudioWindow


def stream_features(
    source: AudioSource,
    *,
    max_seconds: float = math.inf,
    truncate: bool = False,
    partial: bool = False,
    recording: int = 0,
    sample_rate: int | None = None,
) -> Iterator[tuple[AudioWindow, NDArray[np.float32]]]:
    """Decode, resample, cut and transform a recording, a window at a time.

    A block is decoded, converted to 16 kHz and copied into its window; a full window becomes features
    before the next block is asked for. Memory is about two windows, however long the recording is. Features
    come no earlier: Whisper's scale depends on the loudest bin of the window.

    Args:
        source: as in ``load``: a file, an array, or an iterator of blocks, which may have no end.
        max_seconds, truncate, partial, recording, sample_rate: as in ``load``; no limit by default.

    Yields:
        Each window with its features, float32 ``[window.num_frames, 128]``: those of ``ops.log_mel`` over
        all windows at once, bit for bit.

    Raises:
        AudioError: as in ``load``, when decoding gets to what is wrong.
    """
    windows = stream_windows(
        source, max_seconds=max_seconds, truncate=truncate, partial=partial, recording=recording,
        sample_rate=sample_rate,
    )  # fmt: skip
    return _with_features(windows)


def _with_features(
    windows: Iterator[AudioWindow],
) -> Iterator[tuple[AudioWindow, NDArray[np.float32]]]:
    import torch  # on first use

    from ..ops import log_mel

    for window in windows:
        yield window, log_mel(torch.from_numpy(window.samples)).numpy()
