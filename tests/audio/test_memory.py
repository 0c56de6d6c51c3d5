"""Memory stays bounded: half an hour of 48 kHz stereo, and headers that promise the moon.

Each runs in a process of its own, where the high-water mark is its own.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests import high_water

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/status").exists(), reason="needs /proc for the high-water mark"
    ),
]

PRELUDE = """
import sys, warnings
from pathlib import Path
import numpy as np, soundfile, soxr
try:
    import av
except ImportError:
    pass
from afnext.audio import load, stream_windows
from afnext.errors import AudioError
warnings.simplefilter("ignore")
load(np.zeros(4800, np.float32), sample_rate=48000)
"""


def grown(code: str, *arguments: object) -> float:
    """Megabytes by which the high-water mark rose over that of the imports."""
    return high_water.grown(PRELUDE, code, *arguments) / 1000


@pytest.fixture(scope="module")
def half_an_hour(tmp_path_factory) -> Path:
    """48 kHz stereo, 16 bit: 346 MB, of which the disk holds only the header."""
    path = tmp_path_factory.mktemp("long") / "half_an_hour.wav"
    size = 1800 * 48_000 * 4
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 2, 48_000, 192_000, 4, 16, b"data", size),
    )
    with path.open("wb") as file:
        file.write(head)
        file.truncate(44 + size)
    return path


def test_half_an_hour_needs_its_windows_and_little_more(half_an_hour: Path):
    """The windows themselves are 115 MB; the promise is 150 MB."""
    code = "windows = load(sys.argv[1])\nassert len(windows) == 60"
    assert 100 < grown(code, half_an_hour) < 130


def test_streaming_needs_about_one_window(half_an_hour: Path):
    code = (
        "assert sum(1 for _ in stream_windows(sys.argv[1], max_seconds=300, truncate=True)) == 10"
    )
    assert grown(code, half_an_hour) < 15


def test_a_compressed_bomb_costs_no_memory(tmp_path: Path, encode):
    """Eight channels of silence in FLAC: 105 MB as float32, in a thousandth of it."""
    path = tmp_path / "bomb.flac"
    path.write_bytes(encode(np.zeros((655_350 * 5, 8), np.int16), 655_350, "FLAC"))
    assert path.stat().st_size < 100_000
    assert grown("assert len(load(sys.argv[1])) == 1", path) < 20


def test_forged_headers_cost_no_memory(tmp_path: Path, encode, sine):
    """Every four bytes of every header in turn set to huge values, in both byte orders."""
    for format, subtype in [
        ("WAV", "PCM_16"),
        ("WAV", "MS_ADPCM"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("AIFF", "PCM_16"),
        ("CAF", "ALAC_16"),
        ("AU", "PCM_16"),
    ]:
        data = encode(sine(48_000, 0.1, channels=2), 48_000, format, subtype)
        (tmp_path / f"{format}_{subtype}").write_bytes(data)
    code = """
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    for place in range(0, 100, 2):
        for value in (b"\\xff\\xff\\xff\\x7f", b"\\x7f\\xff\\xff\\xff", b"\\xff\\xff\\0\\0"):
            forged = data[:place] + value + data[place + 4:]
            try:
                for _ in stream_windows(forged, max_seconds=60, truncate=True, partial=True):
                    pass
            except AudioError:
                pass
"""
    assert grown(code, tmp_path) < 60
