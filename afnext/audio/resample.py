"""Any rate to 16 kHz, a block at a time.

Streaming gives the samples of one-shot ``soxr.resample(..., quality="HQ")`` bit for bit; that is what
librosa's and transformers' ``soxr_hq`` call too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from .windows import SAMPLE_RATE

# Output samples per step: a block at 1 Hz grows 16,000-fold.
_STEP_SAMPLES = 65_536


def resample(blocks: Iterable[NDArray[np.float32]], rate: int) -> Iterator[NDArray[np.float32]]:
    """Convert mono float32 blocks ``[n]`` at ``rate`` Hz to 16 kHz; at 16 kHz they pass through.

    The result has round(n * 16000 / rate) samples in all and no delay.
    """
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    step = max(1, _STEP_SAMPLES * rate // SAMPLE_RATE)
    for block in blocks:
        for start in range(0, len(block), step):
            yield stream.resample_chunk(block[start : start + step])
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def downmix(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over channels: float32 ``[n, channels]`` to ``[n]``."""
    channels = block.shape[1]
    if channels == 1:
        return block[:, 0]
    if channels > 8:  # one pass per channel stops paying
        return block.mean(axis=1, dtype=np.float32)
    mono = block[:, 0] + block[:, 1]
    for channel in range(2, channels):
        mono += block[:, channel]
    mono *= np.float32(1 / channels)
    return mono
