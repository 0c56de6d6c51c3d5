"""From a recording to windows: the public face of this package."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError, AudioWarning
from .decode import open_audio
from .info import AudioInfo, AudioSource, Decoder, StreamDamaged
from .resample import downmix, resample
from .windows import SAMPLE_RATE, AudioWindow, cut_windows

MAX_SECONDS = 1800.0
# The square of a spectrum beyond this overflows float32; 32-bit integers left unscaled stay below.
_MAX_MAGNITUDE = 2.0**31


def load(
    source: AudioSource,
    *,
    max_seconds: float = MAX_SECONDS,
    truncate: bool = False,
    partial: bool = False,
    recording: int = 0,
    sample_rate: int | None = None,
) -> list[AudioWindow]:
    """Read a recording as 16 kHz mono in windows of at most 30 s.

    WAV, FLAC, MP3, OGG (Vorbis, Opus), AIFF, AU and CAF are read by libsndfile, everything else by
    PyAV where ``afnext[media]`` is installed. Channels are averaged; soxr (HQ) converts the rate.
    Files are decoded in blocks, so memory is the windows (3.84 MB a minute) and a few MB.

    Args:
        source: a path; bytes; a binary file object (read from its beginning, left open; a pipe is
            copied to an unnamed temporary file first); or a NumPy or torch array ``[n]``,
            ``[channels, n]`` or ``[n, channels]`` (the shorter axis is channels), where floats have
            full scale 1.0 and int8, int16, int32 and uint8 are scaled to it; or an iterator of such
            arrays, blocks ``[n]`` or ``[n, channels]`` of any lengths, as a microphone gives them.
        max_seconds: the limit on length; ``math.inf`` for none.
        truncate: use the first ``max_seconds`` of what is longer, instead of refusing it.
        partial: of a damaged or cut-short file use what precedes the damage, with an
            ``AudioWarning``, instead of refusing it.
        recording: index of this recording in its conversation; copied into the windows.
        sample_rate: Hz; for an array or blocks, and only then.

    Returns:
        At least one window. A last window of at most 20 ms, which has no token, is left out unless
        it is the only one.

    Raises:
        AudioError: the source is missing, empty, not audio, holds no samples, ends before its
            header says or is damaged (the message says at which second), is too long, or holds NaN,
            infinity or values beyond 2^31.

    A file that states no length (MP3 without a Xing header, raw AAC) cannot be told from one that was
    cut: what is there is used. An Ogg file without its end mark is used with an ``AudioWarning``.
    """
    return list(
        stream_windows(
            source,
            max_seconds=max_seconds,
            truncate=truncate,
            partial=partial,
            recording=recording,
            sample_rate=sample_rate,
        )
    )


def stream_windows(
    source: AudioSource,
    *,
    max_seconds: float = MAX_SECONDS,
    truncate: bool = False,
    partial: bool = False,
    recording: int = 0,
    sample_rate: int | None = None,
    told: Callable[[AudioInfo], None] = lambda info: None,
    audible: bool = False,
) -> Iterator[AudioWindow]:
    """As ``load``, a window at a time: about one window is held in memory.

    What is wrong far into a file is found when decoding gets there, after windows were yielded.
    ``told`` is called with what the header states before the first one. ``audible`` refuses a recording
    without an audio token.
    """
    max_seconds = _checked_limit(max_seconds)
    if isinstance(recording, bool) or not isinstance(recording, int) or recording < 0:
        raise AudioError(f"recording: must be an index from 0, got {recording!r}")
    return _windows(source, max_seconds, truncate, partial, recording, sample_rate, told, audible)


def probe(source: AudioSource, *, sample_rate: int | None = None) -> AudioInfo:
    """What the header of a recording states, without decoding it.

    Raises:
        AudioError: as in ``load``, where the header shows it.
    """
    with open_audio(source, sample_rate) as (decoder, _):
        return decoder.info


def _windows(
    source: AudioSource,
    max_seconds: float,
    truncate: bool,
    partial: bool,
    recording: int,
    sample_rate: int | None,
    told: Callable[[AudioInfo], None],
    audible: bool,
) -> Iterator[AudioWindow]:
    with open_audio(source, sample_rate) as (decoder, name):
        told(decoder.info)
        stated = decoder.info.duration
        if not truncate and stated is not None and stated > max_seconds + decoder.tolerance:
            raise _too_long(name, max_seconds, f" ({stated:.2f} s)")
        mono = _mono_blocks(decoder, name, partial)
        samples = _limited(resample(mono, decoder.info.sample_rate), max_seconds, truncate, name)
        empty = True
        for window in cut_windows(samples, recording):
            empty = False
            if audible and window.num_tokens == 0:  # only where there is no other
                length = 1000 * window.valid_samples / SAMPLE_RATE
                raise AudioError(
                    f"{name}: is too short to be heard ({length:.3g} ms, needs more than 20)"
                )
            yield window
        if empty:
            raise AudioError(f"{name}: holds no audio samples")


def _mono_blocks(decoder: Decoder, name: str, partial: bool) -> Iterator[NDArray[np.float32]]:
    """Checked and downmixed blocks at the decoder's rate, up to the end or the damage."""
    rate, stated = decoder.info.sample_rate, decoder.info.duration
    frames = 0
    damaged = False
    try:
        for block in decoder.blocks():
            _check_values(block, frames, rate, name)
            frames += len(block)
            yield downmix(block)
    except StreamDamaged:
        damaged = True
    seconds = frames / rate
    short = stated is not None and stated - seconds > decoder.tolerance
    if not damaged and not short:
        return
    of = f" of {stated:.2f} s" if short else ""
    message = f"{name}: damaged or cut short: decoding stopped at {seconds:.2f} s{of}"
    if not partial:
        raise AudioError(message, "partial (partial=True, --partial) uses what precedes it")
    warnings.warn(message, AudioWarning, stacklevel=2)


def _check_values(block: NDArray[np.float32], frames: int, rate: int, name: str) -> None:
    if not block.size or np.abs(block).max() <= _MAX_MAGNITUDE:
        return
    frame = int(np.argmax(~(np.abs(block) <= _MAX_MAGNITUDE).all(axis=1)))
    values = block[frame]
    if np.isnan(values).any():
        what = "is NaN"
    elif np.isinf(values).any():
        what = "is infinite"
    else:
        what = "is beyond 2^31 (full scale is 1.0)"
    raise AudioError(f"{name}: the sample at {(frames + frame) / rate:.4f} s {what}")


def _limited(
    chunks: Iterator[NDArray[np.float32]], max_seconds: float, truncate: bool, name: str
) -> Iterator[NDArray[np.float32]]:
    left = math.inf if math.isinf(max_seconds) else round(max_seconds * SAMPLE_RATE)
    for chunk in chunks:
        if len(chunk) <= left:
            left -= len(chunk)
            yield chunk
        elif truncate:
            yield chunk[: int(left)]
            return
        else:
            raise _too_long(name, max_seconds)


def _too_long(name: str, max_seconds: float, stated: str = "") -> AudioError:
    return AudioError(
        f"{name}: is longer{stated} than the limit of {max_seconds:g} s",
        f"truncate (truncate=True, --truncate) uses the first {max_seconds:g} s, or raise max_seconds",
    )


def _checked_limit(max_seconds: float) -> float:
    try:
        limit = float(max_seconds)
    except (TypeError, ValueError):
        limit = math.nan
    if not limit >= 1 / SAMPLE_RATE:
        raise AudioError(f"max_seconds: must be a positive number of seconds, got {max_seconds!r}")
    return limit
