"""NumPy and torch arrays as recordings, whole or a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
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


def as_blocks(source: object) -> Iterator[object] | None:
    """``source`` if it is an iterator, or None; files iterate too (over lines), and are files."""
    if isinstance(source, Iterator) and not hasattr(source, "read"):
        return source
    return None


class BlockDecoder:
    """An iterator of arrays ``[n]`` or ``[n, channels]``, of any lengths, that ends when it likes."""

    tolerance = 0.0

    def __init__(self, blocks: Iterator[object], sample_rate: int | None) -> None:
        rate = _checked_rate(sample_rate)
        first = next(blocks, None)
        if first is None:
            raise AudioError("audio blocks: hold no samples")
        self._blocks = chain([first], blocks)
        array = _block(first, 0)
        self.info = AudioInfo(None, rate, array.shape[1], format="blocks", codec=str(array.dtype))

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        step = max(1, BLOCK_VALUES // self.info.channels)
        for index, block in enumerate(self._blocks):
            array = _block(block, index)
            if array.shape[1] != self.info.channels:
                raise AudioError(
                    f"audio block {index}: has {array.shape[1]} channels, those before it "
                    f"{self.info.channels}"
                )
            for start in range(0, len(array), step):
                yield to_float(array[start : start + step])


def _block(block: object, index: int) -> NDArray:
    """A block as ``[n, channels]``."""
    array = as_array(block)
    if array is None or array.ndim not in (1, 2):
        got = type(block).__name__ if array is None else list(array.shape)
        raise AudioError(f"audio block {index}: must be an array [n] or [n, channels], got {got}")
    _check_dtype(array, f"audio block {index}")
    return array[:, None] if array.ndim == 1 else array


def _check_dtype(array: NDArray, name: str) -> None:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if not (kind == "f" or (kind == "i" and size <= 4) or (kind == "u" and size == 1)):
        raise AudioError(
            f"{name}: dtype must be {_DTYPES} (a wider or unsigned integer has no agreed full "
            f"scale), got {array.dtype}"
        )


def _frames_first(array: NDArray) -> NDArray:
    _check_dtype(array, "audio array")
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
