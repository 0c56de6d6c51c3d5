"""What the decoders share: the facts about a recording, and how a decoder hands its samples over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    AudioSource: TypeAlias = (
        str
        | os.PathLike[str]
        | bytes
        | bytearray
        | memoryview
        | BinaryIO
        | NDArray
        | torch.Tensor
        | Iterator[NDArray]
    )
else:
    AudioSource = object

MAX_RATE = 768_000
MAX_CHANNELS = 1024
# Values (frames x channels) decoded at a time: 64 KiB of float32.
BLOCK_VALUES = 16_384


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the header of a recording states; nothing here has been checked by decoding.

    Attributes:
        duration: seconds, or None where the header states no length (a raw stream, an MP3 without a
            Xing header, a live recording).
        sample_rate: Hz, before conversion.
        channels: before downmixing.
        format: container, such as "WAV", "FLAC", "OGG"; "array" for an array.
        codec: how the samples are coded, such as "PCM_16", "VORBIS", "aac"; an array's dtype.
    """

    duration: float | None
    sample_rate: int
    channels: int
    format: str
    codec: str


class StreamDamaged(Exception):
    """A decoder cannot go on after the blocks that it has yielded."""


class Decoder(Protocol):
    """An opened recording.

    ``tolerance`` is how many seconds may be missing at the end before the recording counts as cut
    short: encoder padding and rounded durations are not damage.
    """

    info: AudioInfo
    tolerance: float

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield float32 ``[n, channels]``, each valid until the next; raise ``StreamDamaged``."""
        ...


def to_float(samples: NDArray) -> NDArray[np.float32]:
    """Samples of any real dtype to float32; integers are scaled so that full scale is 1.0."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) * np.float32(1 / 128)
    if samples.dtype.kind == "i":
        full_scale = 2.0 ** (8 * samples.dtype.itemsize - 1)
        return samples.astype(np.float32) * np.float32(1 / full_scale)
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused downstream
        return samples.astype(np.float32, copy=False)
