"""Every kind of bad file has its stated treatment: an ``AudioError`` of one line, nothing left open."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile

from afnext.audio import AudioWarning, load, probe, stream_windows
from afnext.errors import AfnextError, AudioError

FD = Path("/proc/self/fd")


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """The same open descriptors after as before."""
    if not FD.exists():
        yield
        return
    before = sorted(str(p.readlink()) for p in FD.iterdir() if p.exists())
    yield
    assert sorted(str(p.readlink()) for p in FD.iterdir() if p.exists()) == before


def refused(source, match: str, **options) -> str:
    with pytest.raises(AudioError, match=match) as caught:
        load(source, **options)
    message = str(caught.value)
    assert isinstance(caught.value, AfnextError)
    assert "\n" not in message
    assert len(message) < 400
    return message


# --- Sources


def test_missing_folder_device_and_bad_paths(tmp_path: Path):
    refused(tmp_path / "absent.wav", "absent.wav: no such file")
    refused("https://example.com/a.wav", "only local files")
    refused(tmp_path, "is a folder")
    refused("a\0b.wav", "cannot be read")
    refused("x" * 5000, "cannot be read")
    if Path("/dev/zero").exists():
        refused("/dev/zero", "is a device")


def test_control_characters_in_a_name_do_not_reach_the_terminal():
    assert "\x1b" not in refused("\x1b[31m.wav", "no such file")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX permissions")
def test_permission_denied(tmp_path: Path, sine, encode):
    path = tmp_path / "secret.wav"
    path.write_bytes(encode(sine(8000, 0.1), 8000))
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        refused(path, "permission denied")
    finally:
        os.seteuid(user)


def test_text_mode_and_foreign_objects(tmp_path: Path):
    refused(io.StringIO("RIFF"), "text mode")
    refused(object(), "got object")

    class Strings:
        def read(self, count: int = -1) -> str:
            return "RIFF"

    refused(Strings(), "must return bytes")


class Failing(io.BytesIO):
    """A file on a disk that breaks."""

    failure: BaseException = OSError(5, "Input/output error")

    def read(self, count: int | None = -1) -> bytes:
        if self.tell() > 100_000:
            raise self.failure
        return super().read(count)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG"])
def test_read_errors_are_reported_as_such(format, encode, capfd):
    noise = np.random.default_rng(0).normal(size=(900_000, 1)) * 0.1
    data = encode(noise, 48_000, format)
    assert len(data) > 120_000
    refused(Failing(data), "Input/output error", partial=True)
    assert "Traceback" not in capfd.readouterr().err


def test_an_interrupt_while_reading_is_not_swallowed(encode):
    file = Failing(encode(np.zeros((500_000, 1)), 48_000))
    file.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        load(file)


def test_a_closed_file_object():
    file = io.BytesIO(b"RIFF")
    file.close()
    refused(file, "cannot be read")


# --- Content


@pytest.mark.parametrize("media", [True, False])
def test_empty_and_non_audio(media: bool, request):
    if media:
        pytest.importorskip("av")
    else:
        request.getfixturevalue("without_media")
    refused(b"", "empty")
    secret = b"password=hunter2 " * 500
    for content in (
        secret,
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        b"PK\x03\x04" + secret,
        b"\xff\xfe" + "text in UTF-16".encode("utf-16-le") * 50,
        b"<html>" + secret,
        bytes(5000),
        b"RIFF",
        b"RIFF\x24\0\0\0WAVE",
        b"fLaC" + secret,
        b"OggS" + secret,
        b"ID3\x04\0\0\0\0\0\0",
        b"FORM\0\0\0\x04AIFF",
        b"\xff\xfb\x90\x64",
    ):
        message = refused(content, "is not|damaged|no audio|codec|needs PyAV")
        assert "hunter2" not in message


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"\0\0\0\x20ftypM4A ", "M4A"), (b"\x1a\x45\xdf\xa3", "WebM"), (b"\xff\xf1\x50\x80", "AAC")],
)
def test_without_pyav_the_error_says_what_to_install(head, name, without_media):
    message = refused(head + bytes(1000), r"pip install 'afnext\[media\]'")
    assert name in message


@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "CAF", "OGG"])
def test_a_header_without_samples(format, encode):
    refused(encode(np.zeros((0, 1)), 16_000, format), "no audio|damaged|codec")


def test_fewer_samples_than_one_at_16_khz(encode):
    refused(encode(np.zeros((1, 1)), 48_000), "holds no audio samples")


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize(("value", "what"), [(math.nan, "NaN"), (math.inf, "infinite")])
def test_the_first_nan_or_infinity_is_named(subtype, value, what, encode):
    audio = np.zeros((96_000, 2))
    audio[60_000, 1] = value
    audio[70_000] = -value
    refused(encode(audio, 48_000, "WAV", subtype), rf"at 1\.2500 s is {what}", partial=True)


# --- Damage


@pytest.mark.parametrize("format", ["WAV", "RF64", "FLAC", "AIFF", "AU", "MP3"])
def test_a_file_that_ends_early_is_refused_or_used_in_part(format, encode):
    """At half the bytes: the error says where, and partial=True gives what was before it."""
    noise = np.random.default_rng(0).normal(size=(160_000, 1)) * 0.1
    data = encode(noise, 16_000, format)
    cut = data[: len(data) // 2]
    message = refused(cut, r"decoding stopped at \d\.\d\d s of 10\.00 s; partial \(partial=True")
    stopped = float(message.split("stopped at ")[1].split(" ")[0])
    assert 4.0 < stopped < 5.1
    with pytest.warns(AudioWarning, match="cut short"):
        [window] = load(cut, partial=True)
    assert window.valid_samples / 16_000 == pytest.approx(stopped, abs=0.006)
    [whole] = load(data)
    np.testing.assert_array_equal(window.samples, whole.samples[: window.valid_samples])


@pytest.mark.parametrize("format", ["CAF", "W64"])
def test_media_whose_chunk_is_longer_than_the_file(format, encode):
    """FFmpeg takes what is there without a word; the chunk's stated size tells."""
    pytest.importorskip("av")
    data = encode(np.zeros((160_000, 1)), 16_000, format)
    assert load(data)[0].valid_samples == 160_000
    refused(data[: len(data) // 2], r"cut short: decoding stopped at [45]\.\d\d s")


@pytest.mark.parametrize(("format", "codec"), [("matroska", "aac"), ("webm", "libopus")])
def test_media_that_ends_early(format, codec, sine, encode_media):
    data = encode_media(sine(48_000, 10.0), 48_000, format, codec)
    cut = data[: len(data) // 2]
    refused(cut, r"decoding stopped at [45]\.\d\d s of 10\.\d\d s")
    with pytest.warns(AudioWarning, match="cut short"):
        assert 4 < load(cut, partial=True)[0].valid_samples / 16_000 < 5.5


@pytest.mark.parametrize("format", ["FLAC", "MP3"])
def test_damage_in_the_middle(format, encode):
    noise = np.random.default_rng(0).normal(size=(160_000, 1)) * 0.1
    data = bytearray(encode(noise, 16_000, format))
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    refused(bytes(data), r"damaged or cut short: decoding stopped at [45]\.")


def test_damaged_aac(sine, encode_media):
    """A broken packet between good ones is damage; a first or last one is how a stream is cut."""
    data = encode_media(sine(48_000, 5.0), 48_000, "adts", "aac")
    middle = len(data) // 2
    noise = np.random.default_rng(0).bytes(400)
    refused(data[:middle] + noise + data[middle + 400 :], r"stopped at 2\.")
    assert 4.7 < load(data[300:-100])[0].valid_samples / 16_000 < 5.1


def test_nothing_decoded_is_an_error_even_in_part(encode):
    noise = np.random.default_rng(0).normal(size=(16_000, 1)) * 0.1
    data = encode(noise, 16_000, "FLAC")
    with pytest.warns(AudioWarning, match=r"stopped at 0\.00 s"):
        refused(data[:150], "holds no audio samples", partial=True)


# --- Headers that lie


def wav(rate: int = 16_000, channels: int = 1, samples: int = 1000, **sizes: int) -> bytes:
    data = bytes(samples * channels * 2 if channels < 2000 else samples)
    riff = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        sizes.get("riff", 36 + len(data)),
        b"WAVE",
        b"fmt ",
        16,
        1,
        channels,
        rate,
        rate * channels * 2 & 0xFFFF_FFFF,
        channels * 2 & 0xFFFF,
        16,
        b"data",
        sizes.get("data", len(data)),
    )
    return riff + data


@pytest.mark.parametrize("rate", [0, 768_001, 2**31 - 1, 2**31, 2**32 - 1])
def test_impossible_rates(rate: int):
    refused(wav(rate=rate), "rate|damaged|not audio")


@pytest.mark.parametrize("rate", [1, 768_000])
def test_rates_at_the_limits(rate: int):
    [*windows] = load(wav(rate=rate, samples=100))
    assert sum(w.valid_samples for w in windows) == round(100 * 16_000 / rate)


@pytest.mark.parametrize("channels", [0, 1025, 65_535])
def test_impossible_channel_counts(channels: int):
    refused(wav(channels=channels), "channels|damaged|codec|not audio")


def test_1024_channels(encode):
    [window] = load(wav(channels=1024, samples=500))
    assert window.valid_samples == 500


def test_a_header_that_states_too_much_is_refused_before_decoding(sine, encode):
    """Also where it lies: what it states is the only thing known without decoding."""
    flac = bytearray(encode(sine(16_000, 1.0), 16_000, "FLAC"))
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4
    refused(bytes(flac), r"is longer \(\d+\.\d\d s\) than the limit of 1800 s; .*truncate=True")
    refused(bytes(flac), "damaged or cut short", truncate=True)
    with pytest.warns(AudioWarning):
        assert load(bytes(flac), truncate=True, partial=True)[0].valid_samples == 16_000
    refused(wav(data=10**9), "is longer")


def test_a_header_that_states_too_little_does_not_lift_the_limit(encode_media, sine):
    """Raw AAC states nothing: the limit holds against what is decoded."""
    data = encode_media(sine(48_000, 3.0), 48_000, "adts", "aac")
    windows = stream_windows(data, max_seconds=2)
    with pytest.raises(AudioError, match="is longer than the limit of 2 s"):
        list(windows)
    assert load(data, max_seconds=2, truncate=True)[0].valid_samples == 32_000


def test_an_hour_is_refused_or_cut_when_asked(tmp_path: Path):
    """A sparse hour of 16 kHz: refused at once, cut to 30 minutes, whole when the limit is raised."""
    path = tmp_path / "hour.wav"
    with path.open("wb") as file:
        file.write(wav(samples=0, data=3600 * 32_000, riff=36 + 3600 * 32_000))
        file.truncate(44 + 3600 * 32_000)
    message = refused(path, r"is longer \(3600\.00 s\) than the limit of 1800 s")
    assert "truncate=True" in message
    assert "max_seconds" in message
    assert probe(path).duration == 3600
    counts = [w.valid_samples for w in stream_windows(path, truncate=True)]
    assert counts == [480_000] * 60
    assert sum(1 for _ in stream_windows(path, max_seconds=3600)) == 120


def test_an_abandoned_stream_closes_its_file(tmp_path: Path):
    path = tmp_path / "a.wav"
    scipy.io.wavfile.write(path, 16_000, np.zeros(16_000 * 61, np.int16))
    windows = stream_windows(path)
    assert next(windows).start_sample == 0
    windows.close()  # type: ignore[attr-defined]


def test_a_file_takes_no_sample_rate(sine, encode):
    refused(encode(sine(8000, 0.1), 8000), "sample_rate", sample_rate=8000)


# --- What FFmpeg must not be talked into


@pytest.mark.parametrize("whitelisted", [True, False])
def test_playlists_and_scripts_open_no_other_file(
    whitelisted: bool, tmp_path: Path, monkeypatch, sine, encode_media
):
    """A concat script names a readable recording beside it; without our list FFmpeg would open it."""
    target = encode_media(sine(48_000, 1.0), 48_000, "adts", "aac")
    from afnext.audio import media

    (tmp_path / "target.aac").write_bytes(target)
    monkeypatch.chdir(tmp_path)
    script = b"ffconcat version 1.0\nfile target.aac\n"
    if whitelisted:
        refused(script, "is not audio")
        refused(b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5.0,\ntarget.aac\n", "is not audio")
        refused(b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=audio 5004 RTP/AVP 0\n", "is not")
        refused(b"rtsptext\r\nfile:target.aac\r\n", "is not audio")
    else:  # the danger is real, so the test above can fail
        monkeypatch.setattr(media, "_OPTIONS", {})
        assert load(script)[0].valid_samples > 15_000
