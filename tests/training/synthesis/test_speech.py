"""Spoken sentences: cut to what is heard, by many voices, some of which no training set has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from afnext.errors import AfnextError
from afnext.training.synthesis.sounds import SAMPLE_RATE
from afnext.training.synthesis.speech import (
    HELD_OUT_VOICES,
    VOICES,
    Voice,
    missing_programs,
    speak,
)

pytestmark = pytest.mark.slow

TEXT = "The red car leaves at half past nine."
with_programs = pytest.mark.skipif(
    bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"
)


def fundamental(wave: np.ndarray) -> float:
    """The median over frames of the strongest period between 60 and 400 Hz, in Hz."""
    found = []
    for frame in np.lib.stride_tricks.sliding_window_view(wave, 800)[::400]:
        power = np.abs(np.fft.rfft(frame * np.hanning(800), 2048)) ** 2
        lags = np.fft.irfft(power)[: SAMPLE_RATE // 60]
        lag = SAMPLE_RATE // 400 + int(lags[SAMPLE_RATE // 400 :].argmax())
        if lags[lag] > 0.5 * lags[0]:
            found.append(SAMPLE_RATE / lag)
    return float(np.median(found))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program there is: what it is to do is written into it."""
    path = tmp_path / "espeak-ng"
    path.write_text("#!/bin/sh\n/bin/cat " + str(tmp_path / "said.wav") + "\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return path


def test_what_is_said_is_cut_to_what_is_heard(program: Path) -> None:
    """0.3 s of silence, half a second of a tone and a little noise under the threshold at 22,050 Hz: half a
    second at 16 kHz is left, of unit RMS."""
    rate = 22_050
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
    faint = np.random.default_rng(0).uniform(-0.002, 0.002, rate // 5)
    soundfile.write(
        program.parent / "said.wav", np.concatenate([np.zeros(6615), tone, faint]), rate
    )
    wave = speak(TEXT, VOICES[0])
    assert wave.dtype == np.float32
    assert len(wave) == pytest.approx(SAMPLE_RATE / 2, abs=SAMPLE_RATE * 0.003)  # a period
    assert np.sqrt(np.mean(np.square(wave))) == pytest.approx(1, abs=1e-3)
    peak = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)[np.abs(np.fft.rfft(wave)).argmax()]
    assert peak == pytest.approx(440, abs=2)


def test_programs_that_are_missing_or_fail_are_named(program: Path) -> None:
    soundfile.write(program.parent / "said.wav", np.zeros(8000), 16_000)
    with pytest.raises(AfnextError, match="espeak-ng made no sound of 'The red car"):
        speak(TEXT, VOICES[0])
    with pytest.raises(AfnextError, match=r"flite is not installed; .* Debian packages espeak-ng"):
        speak(TEXT, Voice("slt", "flite", "slt", True))
    assert missing_programs() == ["flite"]
    program.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(AfnextError, match=r"espeak-ng failed: .* exit status 3"):
        speak(TEXT, VOICES[0])


def test_voices_of_evaluation_are_in_no_training_set() -> None:
    assert not {v.name for v in VOICES} & {v.name for v in HELD_OUT_VOICES}
    assert not {(v.program, v.code) for v in VOICES} & {
        (v.program, v.code) for v in HELD_OUT_VOICES
    }
    names = [v.name for v in (*VOICES, *HELD_OUT_VOICES)]
    assert len(set(names)) == len(names)
    for voices in (VOICES, HELD_OUT_VOICES):
        assert {v.high for v in voices} == {False, True}
        assert {v.program for v in voices} == {"espeak-ng", "flite"}


@with_programs
def test_every_voice_speaks_and_no_two_alike() -> None:
    voices = (*VOICES, *HELD_OUT_VOICES)
    waves = [speak(TEXT, voice) for voice in voices]
    assert len({wave.tobytes() for wave in waves}) == len(voices)
    for voice, wave in zip(voices, waves, strict=True):
        assert 1.0 < len(wave) / SAMPLE_RATE < 5.0, voice.name
        assert np.sqrt(np.mean(np.square(wave))) == pytest.approx(1, abs=1e-3)
        level = np.abs(wave)
        assert min(level[:160].max(), level[-160:].max()) >= 0.01 * level.max(), voice.name
        assert (fundamental(wave) > 150) == voice.high, voice.name


@with_programs
@pytest.mark.parametrize("voice", [VOICES[0], VOICES[-3]], ids=lambda voice: voice.name)
def test_rate_and_pitch_do_what_they_say(voice: Voice) -> None:
    plain, fast, high = (speak(TEXT, voice, *how) for how in ((1.0, 1.0), (1.2, 1.0), (1.0, 1.15)))
    assert len(fast) / len(plain) == pytest.approx(1 / 1.2, abs=0.08)
    assert len(high) / len(plain) == pytest.approx(1, abs=0.06)
    assert fundamental(high) > 1.04 * fundamental(plain)
    assert (speak(TEXT, voice) == plain).all()
