"""A recording that is read in two goes: its first windows, then the others."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from afnext.audio import AudioWarning, load
from afnext.audio.recording import AHEAD, Recording
from afnext.errors import AudioError

RATE = 22_050


def flac(seconds: float) -> bytes:
    samples = np.random.default_rng(0).standard_normal((int(seconds * RATE), 2)) * 0.1
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC")
    return file.getvalue()


LONG = flac(100.0)


@pytest.mark.parametrize("options", [{}, {"max_seconds": 70.0, "truncate": True}])
def test_it_is_what_load_reads(options: dict) -> None:
    recording = Recording(LONG, recording=2, **options)
    assert len(recording.first) == AHEAD
    assert not recording.complete
    assert recording.expected_tokens == int(25 * options.get("max_seconds", 100))
    assert recording.expected_tokens - 50 < recording.certain_tokens < recording.expected_tokens
    windows = [*recording.first, *recording.rest()]
    expected = load(LONG, recording=2, **options)
    assert recording.complete
    assert recording.seconds == options.get("max_seconds", 100.0)
    assert recording.expected_tokens == sum(w.num_tokens for w in expected)
    assert len(windows) == len(expected)
    for ours, theirs in zip(windows, expected, strict=True):
        assert (ours.start_sample, ours.recording) == (theirs.start_sample, theirs.recording)
        assert np.array_equal(ours.samples, theirs.samples)


def test_what_is_short_is_complete_at_once() -> None:
    recording = Recording(flac(20.0))
    assert recording.complete
    assert list(recording.rest()) == []


def test_an_array_is_copied_at_once() -> None:
    samples = np.full(100 * 16_000, 0.25, np.float32)
    recording = Recording(samples, sample_rate=16_000)
    samples[:] = 0
    assert recording.complete
    assert all((w.samples == 0.25).all() for w in recording.first)
    assert recording.seconds == 100.0


def test_damage_far_into_it_comes_when_that_is_read() -> None:
    broken = LONG[: len(LONG) * 8 // 10]
    with pytest.raises(AudioError) as whole:
        load(broken)
    recording = Recording(broken)
    with pytest.raises(AudioError) as late:
        list(recording.rest())
    assert str(late.value) == str(whole.value)
    partial = Recording(broken, partial=True)
    assert partial.certain_tokens == 0
    with pytest.warns(AudioWarning, match="cut short"):
        assert 75 < sum(w.valid_samples for w in [*partial.first, *partial.rest()]) / 16_000 < 81


@pytest.mark.parametrize("begun", [False, True])
def test_closing_closes_the_file(tmp_path: Path, begun: bool) -> None:
    path = tmp_path / "long.flac"
    path.write_bytes(LONG)

    def held() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(link.exists() and link.resolve() == path for link in links)

    recording = Recording(path)
    assert held() == 1
    if begun:
        rest = recording.rest()
        next(rest)
        rest.close()
    else:
        recording.close()
    assert held() == 0
