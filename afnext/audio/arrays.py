"""NumPy and torch arrays as recordings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError
from .info import BLOCK_VALUES, MAX_CHANNELS, MAX_RATE, AudioInfo, to_float
from .windows import SAMPLE_RATE

_DTYPES = "float16, float32, float64, int8, int16, int32 or uint8"


def as_array(source: object) -> NDArray | None:
    """``source`` as a NumPy array without a copy where it can be, or None if it is no array."""
    if isinstance(source, (bytes, bytearray, memoryview, str)):
        return None
    if isinstance(source, np.ndarray):
        return source
    tensor: Any = source
    if callable(getattr(source, "detach", None)) and callable(getattr(source, "cpu", None)):
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # unknown to NumPy
            tensor = tensor.float()
        return tensor.numpy()
    if hasattr(source, "__array__"):
        return np.asarray(source)
    return None


class ArrayDecoder:
    """Blocks of an array ``[n]``, ``[channels, n]`` or ``[n, channels]`` (channels: the shorter)."""

    tolerance = 1 / SAMPLE_RATE

    def __init__(self, array: NDArray, sample_rate: int | None) -> None:
        self._samples = _frames_first(array)
        self.info = AudioInfo(
            duration=len(self._samples) / _checked_rate(sample_rate),
            sample_rate=_checked_rate(sample_rate),
            channels=self._samples.shape[1],
            format="array",
            codec=str(array.dtype),
        )

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        step = max(1, BLOCK_VALUES // self.info.channels)
        for start in range(0, len(self._samples), step):
            yield to_float(self._samples[start : start + step])


def _frames_first(array: NDArray) -> NDArray:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if not (kind == "f" or (kind == "i" and size <= 4) or (kind == "u" and size == 1)):
        raise AudioError(
            f"audio array: dtype must be {_DTYPES} (a wider or unsigned integer has no agreed full "
            f"scale), got {array.dtype}"
        )
    if array.ndim not in (1, 2):
        raise AudioError(
            f"audio array: must be [n], [channels, n] or [n, channels], got {list(array.shape)}"
        )
    if array.size == 0:
        raise AudioError(f"audio array: holds no samples, its shape is {list(array.shape)}")
    if array.ndim == 1:
        return array[:, None]
    rows, columns = array.shape
    if rows == columns > 1:
        raise AudioError(
            f"audio array: [{rows}, {columns}] does not tell channels from samples; pass [n]"
        )
    if min(rows, columns) > MAX_CHANNELS:
        raise AudioError(
            f"audio array: at most {MAX_CHANNELS} channels (the shorter axis), got "
            f"{list(array.shape)}"
        )
    return array.T if rows < columns else array


def _checked_rate(sample_rate: object) -> int:
    if sample_rate is None:
        raise AudioError("sample_rate: an array needs one, in Hz")
    if isinstance(sample_rate, float) and sample_rate.is_integer():
        sample_rate = int(sample_rate)
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise AudioError(f"sample_rate: must be a whole number of Hz, got {sample_rate!r}")
    if not 1 <= sample_rate <= MAX_RATE:
        raise AudioError(f"sample_rate: must be 1 to {MAX_RATE} Hz, got {sample_rate}")
    return int(sample_rate)
