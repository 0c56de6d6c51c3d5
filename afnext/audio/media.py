"""Decode anything else (M4A, AAC, WebM, WMA, ...) with PyAV, the ``[media]`` extra.

FFmpeg has demuxers that open further files and network addresses (playlists, HLS, concat scripts).
Bytes from strangers must not reach them: only the formats listed here are probed into, and no
protocol may be opened (compare CVE-2026-22778 and CVE-2025-6242 in other audio servers).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError
from .info import AudioInfo, StreamDamaged, to_float
from .source import ByteStream

# Containers whose header states the length; the length of the others is FFmpeg's estimate.
_TIMED = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "wav", "w64", "flac", "aiff", "caf"
_UNTIMED = "aac", "mp3", "ac3", "eac3", "amr", "mpegts", "mpeg", "avi", "flv", "ogg", "au"
_LOSSLESS = "wv", "ape", "tta", "tak", "dsf"
_OPTIONS = {
    "format_whitelist": ",".join(_TIMED + _UNTIMED + _LOSSLESS),
    "protocol_whitelist": "none",
}
# Tags in a foreign encoding are no reason to refuse a recording; PyAV 19 decodes them leniently itself.
_LENIENT: Any = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class MediaDecoder:
    """The first audio stream of a container."""

    tolerance = 0.25  # container durations are rounded and include encoder padding

    def __init__(
        self, container: Any, track: Any, stream: ByteStream, stated_over_present: float
    ) -> None:
        self._container, self._track, self._stream = container, track, stream
        self._stated_over_present = stated_over_present
        self.info = AudioInfo(
            duration=_duration(container, track),
            sample_rate=int(track.codec_context.sample_rate or 0),
            channels=int(track.codec_context.layout.nb_channels),
            format=container.format.name.split(",")[0].upper(),
            codec=track.codec_context.name,
        )

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        decoded = 0
        broken = 0
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                broken += 1
                continue
            except ValueError as error:  # PyAV 19 gives a context to a codec that it does not know
                raise AudioError(
                    f"{self._stream.name}: its audio codec is not supported"
                ) from error
            for frame in frames:
                # A stream may be joined in the middle of a packet, and end in one.
                if broken and decoded:
                    raise StreamDamaged
                decoded, broken = decoded + frame.samples, 0
                if frame.sample_rate != self.info.sample_rate:
                    raise AudioError(
                        f"{self._stream.name}: the sample rate changes within the file"
                    )
                yield self._samples(frame)
        self._stream.check()
        missing = (self._stated_over_present - 1) * decoded / self.info.sample_rate
        if broken > 1 or missing > self.tolerance:
            raise StreamDamaged

    def _samples(self, frame: Any) -> NDArray[np.float32]:
        """The frame as float32 ``[n, channels]``."""
        try:
            samples = frame.to_ndarray()
        except ValueError as error:
            raise AudioError(f"{self._stream.name}: its sample format is not supported") from error
        if frame.format.is_planar:
            return to_float(samples).T
        return to_float(samples.reshape(-1, frame.layout.nb_channels))

    def _packets(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(self._track)
        except av.error.FFmpegError as error:
            self._stream.check()
            raise StreamDamaged from error


def _duration(container: Any, stream: Any) -> float | None:
    if container.format.name not in _TIMED:
        return None
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        seconds = container.duration / 1_000_000
    else:
        return None
    return seconds if seconds > 0 else None


@contextmanager
def open_media(stream: ByteStream, stated_over_present: float = 1.0) -> Iterator[MediaDecoder]:
    """Open ``stream`` with FFmpeg; raise ``AudioError`` where it is not audio.

    ``stated_over_present``: bytes of audio that the header states over bytes that the file has;
    FFmpeg itself takes a shorter file as it is.
    """
    try:
        container: Any = av.open(stream, options=_OPTIONS, **_LENIENT)
    except (av.error.FFmpegError, ValueError):
        stream.check()
        raise AudioError(
            f"{stream.name}: is not audio in a known format, or is damaged from the start"
        ) from None  # FFmpeg's "I/O error" of a header is none of the machine's
    with container:
        if not container.streams.audio:
            raise AudioError(f"{stream.name}: holds no audio stream")
        track = container.streams.audio[0]
        if track.codec_context is None:
            raise AudioError(f"{stream.name}: its audio codec is not supported")
        yield MediaDecoder(container, track, stream, stated_over_present)
