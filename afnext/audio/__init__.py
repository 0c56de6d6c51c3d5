"""Audio in: any file or array to 30 s windows of 16 kHz mono.

``load`` returns windows, ``stream_windows`` yields them one at a time, ``stream_features`` with their
log-mel features; ``probe`` reads the header.
Importing this package loads NumPy only; decoders and the resampler are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import AudioWarning
from .windows import (
    HOP_LENGTH,
    SAMPLE_RATE,
    TOKEN_SECONDS,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    WINDOW_SECONDS,
    WINDOW_TOKENS,
    AudioWindow,
    cut_windows,
    frames_in,
    tokens_in,
)

if TYPE_CHECKING:
    from .features import stream_features
    from .info import AudioInfo, AudioSource
    from .loading import MAX_SECONDS, load, probe, stream_windows

_LAZY = {
    "AudioInfo": "info",
    "AudioSource": "info",
    "MAX_SECONDS": "loading",
    "load": "loading",
    "probe": "loading",
    "stream_features": "features",
    "stream_windows": "loading",
}

__all__ = [
    "HOP_LENGTH",
    "MAX_SECONDS",
    "SAMPLE_RATE",
    "TOKEN_SECONDS",
    "WINDOW_FRAMES",
    "WINDOW_SAMPLES",
    "WINDOW_SECONDS",
    "WINDOW_TOKENS",
    "AudioInfo",
    "AudioSource",
    "AudioWarning",
    "AudioWindow",
    "cut_windows",
    "frames_in",
    "load",
    "probe",
    "stream_features",
    "stream_windows",
    "tokens_in",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
