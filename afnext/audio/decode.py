"""Decode files with libsndfile, a block at a time; what it does not know goes to PyAV."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError, AudioWarning
from .arrays import ArrayDecoder, BlockDecoder, as_array, as_blocks
from .container import Container, identify
from .info import (
    BLOCK_VALUES,
    MAX_CHANNELS,
    MAX_RATE,
    AudioInfo,
    Decoder,
    StreamDamaged,
)
from .source import ByteStream, open_stream

if TYPE_CHECKING:
    import soundfile

# libsndfile puts about 2**63 where a header states no length.
_NO_LENGTH = 1 << 62
_MEDIA_HINT = "pip install 'afnext[media]'"


class SoundFileDecoder:
    """Reads forward only: seeking, as ``SoundFile.read`` does, resets the state of lossy codecs."""

    tolerance = 0.1

    def __init__(self, file: soundfile.SoundFile, container: Container, stream: ByteStream) -> None:
        self._file, self._container, self._stream = file, container, stream
        self._frames = int(file.frames)
        known = container.states_length and self._frames < _NO_LENGTH and file.samplerate > 0
        self.info = AudioInfo(
            duration=(
                self._frames * container.stated_over_present / file.samplerate if known else None
            ),
            sample_rate=int(file.samplerate),
            channels=int(file.channels),
            format=container.name,
            codec=file.subtype,
        )

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        import soundfile

        channels = self.info.channels
        buffer = np.empty((max(1, BLOCK_VALUES // channels), channels), np.float32)
        left = self._frames
        # Never past the stated end: tags behind the audio would count as damage.
        while left > 0:
            try:
                block = self._file.read(out=buffer[: min(left, len(buffer))])
            except (soundfile.SoundFileError, RuntimeError) as error:
                self._stream.check()
                raise StreamDamaged from error
            if len(block) == 0:
                break
            left -= len(block)
            yield block
        self._stream.check()
        if self._container.may_be_cut:
            message = f"{self._stream.name}: has no end mark; it may have been cut short"
            warnings.warn(message, AudioWarning, stacklevel=2)


@contextmanager
def open_audio(source: object, sample_rate: int | None = None) -> Iterator[tuple[Decoder, str]]:
    """Open ``source`` and yield its decoder and the name that errors give it.

    Raises:
        AudioError: it cannot be opened, is not audio, or its rate or channel count is impossible.
    """
    array = as_array(source)
    if array is not None:
        decoder: Decoder = ArrayDecoder(array, sample_rate)
        _check_geometry(decoder.info, "audio array")
        yield decoder, "audio array"
        return
    blocks = as_blocks(source)
    if blocks is not None:
        decoder = BlockDecoder(blocks, sample_rate)
        _check_geometry(decoder.info, "audio blocks")
        yield decoder, "audio blocks"
        return
    with open_stream(source) as stream, _open_stream_decoder(stream) as decoder:
        if sample_rate is not None:
            raise AudioError("sample_rate: only for arrays; a file states its own")
        _check_geometry(decoder.info, stream.name)
        yield decoder, stream.name
        stream.check()


@contextmanager
def _open_stream_decoder(stream: ByteStream) -> Iterator[Decoder]:
    container = identify(stream)
    stream.check()
    stream.seek(0)
    file = _open_soundfile(stream) if container.native else None
    if file is not None:
        with file:
            yield SoundFileDecoder(file, container, stream)
        return
    try:
        from .media import open_media
    except ImportError as error:
        raise AudioError(f"{stream.name}: {_without_media(container)}") from error
    stream.rebase(0)
    with open_media(stream, container.stated_over_present) as decoder:
        yield decoder


def _open_soundfile(stream: ByteStream) -> soundfile.SoundFile | None:
    import soundfile

    class ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    try:
        return ForwardSoundFile(cast(Any, stream))
    except (soundfile.SoundFileError, RuntimeError):
        stream.check()
        return None


def _without_media(container: Container) -> str:
    if container.native:
        return (
            f"the {container.name} file is damaged or its codec is not supported "
            f"(more codecs: {_MEDIA_HINT})"
        )
    if container.name:
        return f"reading {container.name} needs PyAV: {_MEDIA_HINT}"
    return (
        "is not a WAV, FLAC, MP3, OGG, AIFF, AU or CAF file; if it is audio in another format: "
        f"{_MEDIA_HINT}"
    )


def _check_geometry(info: AudioInfo, name: str) -> None:
    if not 1 <= info.sample_rate <= MAX_RATE:
        raise AudioError(f"{name}: sample rate must be 1 to {MAX_RATE} Hz, got {info.sample_rate}")
    if not 1 <= info.channels <= MAX_CHANNELS:
        raise AudioError(f"{name}: channels must be 1 to {MAX_CHANNELS}, got {info.channels}")
