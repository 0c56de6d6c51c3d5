"""Synthetic recordings, made on the fly by libraries that are not ours."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import soundfile

Encode = Callable[..., bytes]


def make_sine(
    rate: int,
    seconds: float,
    hertz: float = 440.0,
    channels: int = 1,
    amplitude: float = 0.5,
    phase: float = 0.0,
) -> np.ndarray:
    """float64 ``[n, channels]``, the same in every channel."""
    times = np.arange(round(rate * seconds)) / rate
    wave = amplitude * np.sin(2 * np.pi * hertz * times + phase)
    return np.repeat(wave[:, None], channels, axis=1)


def encode_native(samples: np.ndarray, rate: int, format: str = "WAV", subtype: str = "") -> bytes:
    """The bytes of a file as libsndfile writes it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype or None)
    return buffer.getvalue()


def encode_with_av(samples: np.ndarray, rate: int, format: str, codec: str) -> bytes:
    """The bytes of a file as FFmpeg writes it."""
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        planar = np.ascontiguousarray(samples.T, np.float32)
        frame = av.AudioFrame.from_ndarray(planar, format="fltp", layout=layout)
        frame.sample_rate = rate
        convert = av.AudioResampler(
            format=stream.codec_context.format, layout=layout, rate=rate, frame_size=1024
        )
        for piece in [*convert.resample(frame), *convert.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def sine() -> Callable[..., np.ndarray]:
    return make_sine


@pytest.fixture(scope="session")
def encode() -> Encode:
    return encode_native


@pytest.fixture(scope="session")
def encode_media() -> Encode:
    return encode_with_av


@pytest.fixture
def without_media(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if PyAV were not installed."""
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "afnext.audio.media", raising=False)
