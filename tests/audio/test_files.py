"""Files of every format and kind of source come in right, against what was written into them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
import soxr

from afnext.audio import AudioWarning, load, probe, stream_windows


def samples_of(source, **options) -> np.ndarray:
    return np.concatenate([w.samples for w in load(source, **options)])


def to_16_khz(samples: np.ndarray, rate: int) -> np.ndarray:
    mono = samples.astype(np.float32).mean(axis=1)
    return mono if rate == 16_000 else soxr.resample(mono, rate, 16_000, quality="HQ")


# Format, subtype, rate, error of the coding itself (RMS, against a sine of amplitude 0.5).
NATIVE = [
    ("WAV", "PCM_U8", 16_000, 1e-2),
    ("WAV", "PCM_16", 48_000, 2e-5),
    ("WAV", "PCM_24", 44_100, 1e-6),
    ("WAV", "PCM_32", 96_000, 1e-6),
    ("WAV", "FLOAT", 22_050, 1e-6),
    ("WAV", "DOUBLE", 8000, 1e-6),
    ("WAV", "ULAW", 8000, 1e-2),
    ("WAV", "ALAW", 8000, 1e-2),
    ("WAV", "IMA_ADPCM", 44_100, 1e-2),
    ("WAVEX", "PCM_16", 16_000, 2e-5),
    ("RF64", "PCM_16", 44_100, 2e-5),
    ("FLAC", "PCM_16", 44_100, 2e-5),
    ("FLAC", "PCM_24", 192_000, 1e-6),
    ("OGG", "VORBIS", 44_100, 1e-2),
    ("OGG", "OPUS", 48_000, 1e-2),
    ("MP3", "MPEG_LAYER_III", 44_100, 1e-2),
    ("MP3", "MPEG_LAYER_III", 8000, 2e-2),
    ("AIFF", "PCM_16", 44_100, 2e-5),
    ("AU", "PCM_24", 48_000, 1e-6),
    ("CAF", "ALAC_16", 44_100, 2e-5),
]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("format", "subtype", "rate", "error"), NATIVE)
def test_native_formats(format, subtype, rate, error, channels, sine, encode, without_media):
    """Without PyAV: the sine comes back, at its place in time (ADPCM pads its last block)."""
    wave = sine(rate, 1.5, channels=channels)
    ours = samples_of(encode(wave, rate, format, subtype))
    expected = to_16_khz(wave, rate)
    assert 0 <= len(ours) - len(expected) <= (1500 if "ADPCM" in subtype else 0)
    inner = slice(1600, len(expected) - 1600)  # encoders ring at the edges
    assert np.sqrt(np.mean((ours[inner] - expected[inner]) ** 2)) < error


@pytest.mark.parametrize(
    ("format", "codec", "rate"),
    [
        ("mp4", "aac", 44_100),
        ("adts", "aac", 48_000),
        ("webm", "libopus", 48_000),
        ("matroska", "aac", 44_100),
        ("ac3", "ac3", 48_000),
        ("mpegts", "aac", 44_100),
    ],
)
def test_media_formats(format, codec, rate, sine, encode_media):
    """Through PyAV: the sine's amplitude and length, to what priming and padding add."""
    ours = samples_of(encode_media(sine(rate, 2.0, channels=2), rate, format, codec))
    assert abs(len(ours) / 16_000 - 2.0) < 0.12
    middle = ours[8000:24_000]
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=0.02)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() == 440


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_wav_written_by_scipy(dtype, tmp_path: Path):
    """16 kHz mono comes back as it was stored: exactly, at full scale 1.0."""
    random = np.random.default_rng(0)
    if np.issubdtype(dtype, np.floating):
        stored = random.uniform(-1, 1, 5000).astype(dtype)
        expected = stored.astype(np.float32)
    else:
        limits = np.iinfo(dtype)
        stored = random.integers(limits.min, limits.max, 5000, dtype, endpoint=True)
        middle = 128 if dtype == np.uint8 else 0
        expected = ((stored.astype(np.float64) - middle) / 2.0 ** (limits.bits - 1)).astype("f4")
    path = tmp_path / "a.wav"
    scipy.io.wavfile.write(path, 16_000, stored)
    np.testing.assert_array_equal(samples_of(path), expected)


@pytest.mark.parametrize("format", ["MP3", "OGG", "FLAC", "WAV"])
def test_blocks_are_what_reading_at_once_gives(format, encode):
    """Lossy codecs keep state between blocks; 2e-7 is a last bit of mpg123's own."""
    noise = np.random.default_rng(0).normal(size=(100_000, 2)) * 0.1
    data = encode(noise, 16_000, format)
    whole = soundfile.read(io.BytesIO(data), dtype="float32")[0].mean(axis=1)
    np.testing.assert_allclose(samples_of(data), whole, rtol=0, atol=2e-7)


def test_every_kind_of_source(tmp_path: Path, sine, encode):
    data = encode(sine(22_050, 1.0), 22_050)
    expected = samples_of(data)
    path = tmp_path / "ünï code.wav"
    path.write_bytes(data)
    behind = io.BytesIO(data)
    behind.seek(0, io.SEEK_END)
    with path.open("rb") as file:
        sources = [path, str(path), file, behind, bytearray(data), memoryview(data), Pipe(data)]
        for source in sources:
            np.testing.assert_array_equal(samples_of(source), expected)
        assert not file.closed
    assert not behind.closed


class Pipe:
    """A file object that only reads, in small pieces."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, count: int = -1) -> bytes:
        return self._file.read(min(count, 777) if count >= 0 else 777)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipe_leaves_no_temporary_file(tmp_path: Path, monkeypatch, sine, encode):
    data = encode(sine(16_000, 1.0), 16_000)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(data,))
    writer.start()
    np.testing.assert_array_equal(samples_of(fifo), samples_of(data))
    writer.join()
    assert not list(folder.iterdir())


def test_stream_is_load_window_by_window(sine, encode):
    data = encode(sine(8000, 65.0), 8000, "FLAC")
    streamed = list(stream_windows(data, recording=1))
    loaded = load(data, recording=1)
    assert [w.valid_samples for w in streamed] == [480_000, 480_000, 80_000]
    for a, b in zip(streamed, loaded, strict=True):
        assert (a.start_sample, a.recording) == (b.start_sample, b.recording)
        np.testing.assert_array_equal(a.samples, b.samples)


def test_probe_reads_headers(sine, encode, encode_media):
    info = probe(encode(sine(44_100, 2.0, channels=2), 44_100, "FLAC", "PCM_24"))
    assert (info.duration, info.sample_rate, info.channels) == (2.0, 44_100, 2)
    assert (info.format, info.codec) == ("FLAC", "PCM_24")
    info = probe(encode_media(sine(44_100, 2.0, channels=2), 44_100, "mp4", "aac"))
    assert info.duration == pytest.approx(2.0, abs=0.1)
    assert (info.format, info.codec, info.channels) == ("MOV", "aac", 2)
    assert probe(encode_media(sine(44_100, 2.0), 44_100, "adts", "aac")).duration is None


# --- MP3 as it is found


def id3(size: int) -> bytes:
    length = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + length + bytes(size)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (id3(1000), b"TAG" + b"a" * 125),
        (id3(1000) + id3(30), b""),
        (id3(2_000_000), b""),
        (bytes(700), b""),
        (id3(1000) + bytes(5000), b""),
        (bytes(range(256)) * 8, b"\0" * 3000),
        (b"ID3\x03\x00\x00\x7f\x7f\x7f\x7f", b""),
    ],
    ids=["tags", "two tags", "cover art", "zeros", "tag and zeros", "junk", "lying tag"],
)
def test_mp3_behind_tags_and_junk(before, behind, sine, encode, without_media):
    data = encode(sine(44_100, 1.0), 44_100, "MP3")
    np.testing.assert_array_equal(samples_of(before + data + behind), samples_of(data))


def test_mp3_without_a_xing_header_is_read_to_its_end(encode, without_media):
    """Loud, then silent: libsndfile's own estimate of the length would lose the silent part."""
    audio = np.zeros((44_100 * 6, 1))
    audio[: 44_100 * 2] = np.random.default_rng(0).normal(size=(44_100 * 2, 1)) * 0.3
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", 44_100, 1, "MPEG_LAYER_III", format="MP3", bitrate_mode="VARIABLE"
    ) as file:
        file.write(audio)
    data = buffer.getvalue()
    xing = data.index(b"Xing")
    bare = data[data.index(data[:2], xing) :]
    assert soundfile.info(io.BytesIO(bare)).duration < 5  # the trap is there
    ours = samples_of(bare)
    assert len(ours) / 16_000 == pytest.approx(6.0, abs=0.1)
    assert np.abs(ours[-32_000:]).max() < 1e-3 < np.abs(ours[:32_000]).max()
    assert probe(bare).duration is None


# --- Lengths that headers state


@pytest.mark.parametrize("format", ["WAV", "FLAC", "AIFF", "OGG", "MP3"])
def test_tags_behind_the_audio_are_not_damage(format, sine, encode, without_media):
    data = encode(sine(16_000, 1.0), 16_000, format)
    np.testing.assert_array_equal(samples_of(data + b"TAG" + b"a" * 125), samples_of(data))


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000 | 36])
def test_wav_written_to_a_pipe_is_whole(size, sine, encode, recwarn):
    """Writers that cannot seek back put these where the size belongs."""
    data = bytearray(encode(sine(16_000, 1.0), 16_000))
    place = data.index(b"data") + 4
    data[place : place + 4] = size.to_bytes(4, "little")
    assert len(samples_of(bytes(data))) == 16_000
    assert not recwarn.list


def test_flac_of_unknown_length_is_whole(sine, encode):
    data = bytearray(encode(sine(16_000, 1.0), 16_000, "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert probe(bytes(data)).duration is None
    assert len(samples_of(bytes(data))) == 16_000


def test_ogg_without_its_end_is_used_with_a_warning(sine, encode):
    data = encode(sine(16_000, 10.0), 16_000, "OGG", "OPUS")
    with pytest.warns(AudioWarning, match="no end mark"):
        assert 0 < len(samples_of(data[: len(data) // 2])) < 160_000


def test_import_is_light():
    """Nothing that decodes is loaded before it is needed."""
    code = (
        "import sys, afnext.audio as audio; audio.AudioWindow, audio.tokens_in\n"
        "heavy = {'soundfile', 'soxr', 'av', 'torch', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(audio.__all__) <= {*dir(audio), *audio._LAZY}\n"
        "audio.load, audio.probe, audio.MAX_SECONDS\n"
        "heavy = {'soundfile', 'soxr', 'av', 'torch', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
