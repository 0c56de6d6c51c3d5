"""Random bytes and mutilated files: windows or an ``AudioError``, soon, and nothing else."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afnext.audio import load, probe
from afnext.errors import AudioError

MAGICS = [
    b"",
    b"RIFF\xff\xff\xff\xffWAVE",
    b"RIFX\0\0\0\xffWAVEfmt ",
    b"RF64\xff\xff\xff\xffWAVEds64",
    b"fLaC\0\0\0\x22",
    b"OggS\0\x02",
    b"FORM\0\0\xff\xffAIFFCOMM",
    b".snd\0\0\0\x18",
    b"caff\0\x01\0\0desc",
    b"ID3\x03\0\0\0\0\0\x10",
    b"\xff\xfb\x90\x64",
    b"\xff\xf1\x50\x80",
    b"\0\0\0\x18ftypM4A ",
    b"\x1a\x45\xdf\xa3\x9f",
    b"riff\x2e\x91\xcf\x11",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    b"#!AMR\n",
    b"wvpk",
]
SECONDS = 5.0  # of processor time, which a loaded machine does not stretch; catches a runaway
QUIET = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def feed(data: bytes, **options) -> None:
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in (lambda: load(data, **options), lambda: probe(data)):
            try:
                result = call()
            except AudioError:
                continue
            if isinstance(result, list):
                assert result
                assert all(np.isfinite(window.samples).all() for window in result)
    assert time.process_time() - start < SECONDS


@QUIET
@given(magic=st.sampled_from(MAGICS), body=st.binary(max_size=3000), tail=st.integers(0, 3000))
def test_random_bytes(magic: bytes, body: bytes, tail: int) -> None:
    feed(magic + body + bytes(tail), max_seconds=60, truncate=True, partial=True)


@pytest.fixture(scope="module")
def seeds(sine, encode, encode_media) -> list[bytes]:
    wave = sine(16_000, 0.5, channels=2)
    native = [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAV", "IMA_ADPCM"),
        ("RF64", "PCM_24"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("CAF", "ALAC_16"),
    ]
    files = [encode(wave, 16_000, *kind) for kind in native]
    try:
        import av  # noqa: F401
    except ImportError:
        return files
    wave = sine(48_000, 0.5, channels=2)
    media = [
        ("mp4", "aac"),
        ("adts", "aac"),
        ("webm", "libopus"),
        ("matroska", "aac"),
        ("ac3", "ac3"),
    ]
    return files + [encode_media(wave, 48_000, *kind) for kind in media]


@st.composite
def mutilations(draw: st.DrawFn) -> list[tuple[float, bytes]]:
    """Places (as a fraction of the reach) and what is written there."""
    word = st.one_of(
        st.binary(min_size=1, max_size=4),
        st.sampled_from([0, 1, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]).flatmap(
            lambda n: st.sampled_from([n.to_bytes(4, "little"), n.to_bytes(4, "big")])
        ),
    )
    return draw(st.lists(st.tuples(st.floats(0, 1), word), min_size=1, max_size=6))


@settings(QUIET, max_examples=250)
@given(
    which=st.integers(0, 1000),
    changes=mutilations(),
    reach=st.sampled_from([64, 300, 10**9]),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    partial=st.booleans(),
)
def test_mutilated_files(seeds, which, changes, reach, keep, partial) -> None:
    data = bytearray(seeds[which % len(seeds)])
    for place, word in changes:
        start = int(place * (min(reach, len(data)) - 1))
        data[start : start + len(word)] = word
    feed(bytes(data[: int(keep * len(data))]), max_seconds=60, truncate=True, partial=partial)
