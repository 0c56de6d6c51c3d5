"""Melodies: every note begins where its label says, at the pitch that it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from afnext.errors import AfnextError
from afnext.training.synthesis import music
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.music import (
    HELD_OUT_SOUNDFONT,
    INSTRUMENTS,
    NOTE,
    SOUNDFONTS,
    Instrument,
    Melody,
    Note,
    make_banks,
    missing_programs,
    play,
)
from afnext.training.synthesis.sounds import SAMPLE_RATE

pytestmark = pytest.mark.slow

WIDEST = max(i.high - i.low for i in INSTRUMENTS) + 1
HELD = round(NOTE * SAMPLE_RATE)


def melodies(
    folder: Path, count: int = 40, seconds: float = 6.0, onset: float = 0.0
) -> list[tuple[Melody, np.ndarray]]:
    return [play(seconds, np.random.default_rng(seed), folder, onset) for seed in range(count)]


def strongest(wave: np.ndarray) -> float:
    """The frequency of the highest peak, in Hz, between bins by zero padding."""
    size = 1 << 17
    return (
        float(np.abs(np.fft.rfft(wave * np.hanning(len(wave)), size)).argmax()) / size * SAMPLE_RATE
    )


def frequency(pitch: int) -> float:
    return float(440 * 2 ** ((pitch - 69) / 12))


@pytest.mark.parametrize(
    ("pitch", "name"), [(60, "C4"), (69, "A4"), (61, "C#4"), (45, "A2"), (88, "E6"), (59, "B3")]
)
def test_notes_are_named_by_middle_c(pitch: int, name: str) -> None:
    assert Note(pitch, 0.0, 1.0).name == name


def test_an_onset_is_known_to_the_sample(banks: Banks, monkeypatch: pytest.MonkeyPatch) -> None:
    """With clicks for notes, each at its first sample, the clicks stand at the labelled onsets, and nowhere
    else."""
    click = np.zeros(HELD, np.int16)
    click[0] = 10_000
    monkeypatch.setattr(music, "bank", lambda *_: np.broadcast_to(click, (3, WIDEST, HELD)))
    for melody, wave in melodies(banks.music[0], onset=1.0):
        at = np.flatnonzero(wave) / SAMPLE_RATE
        assert at == pytest.approx([n.onset - 1.0 for n in melody.notes], abs=0.6 / SAMPLE_RATE)
        assert melody.onset == melody.notes[0].onset == 1.0
        assert melody.offset == melody.notes[-1].offset


def test_a_note_is_heard_up_to_its_offset_and_no_longer(
    banks: Banks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steady notes: full until 40 ms before each offset, silent from there to the next onset."""
    steady = np.full(HELD, 10_000, np.int16)
    monkeypatch.setattr(music, "bank", lambda *_: np.broadcast_to(steady, (3, WIDEST, HELD)))
    for melody, wave in melodies(banks.music[0]):
        sounding = np.zeros(len(wave), bool)
        for note in melody.notes:
            first, last = (round(t * SAMPLE_RATE) for t in (note.onset, note.offset))
            sounding[first:last] = True
            middle = wave[first : last - round(0.041 * SAMPLE_RATE)]
            assert (middle > 0.99 * wave[first]).all()
            assert wave[last - 2] < 0.02 * wave[first]
        edges = np.abs(np.diff(sounding, prepend=False)) > 0
        silent = ~sounding & ~edges & ~np.roll(edges, -1)
        assert not wave[silent].any()


@pytest.mark.parametrize("borrowed", [0, -4, 3])
def test_the_pitch_is_what_the_label_says(banks: Banks, borrowed: int) -> None:
    """The strongest partial of every note is a harmonic of its pitch, the lowest one more often than not; of
    notes that are others played faster or slower too."""
    ratios = []
    for seed in range(12):
        melody, wave = play(6.0, np.random.default_rng(seed), banks.music[0], borrowed=borrowed)
        for note in melody.notes:
            first, last = (round(t * SAMPLE_RATE) for t in (note.onset, note.offset))
            ratios.append(strongest(wave[first + 160 : last - 700]) / frequency(note.pitch))
    nearest = np.round(ratios)
    cents = 1200 * np.log2(ratios / nearest)
    assert np.abs(cents).max() < 35
    assert set(nearest) <= {1, 2, 3, 4}
    assert np.mean(nearest == 1) > 0.5


def test_a_melody_keeps_its_rules(banks: Banks) -> None:
    """Within its time, one note after another, in range, in tempo, of unit RMS; short ones too."""
    ranges = {i.name: (i.low, i.high) for i in INSTRUMENTS}
    tempos, names, changes = set(), set(), set()
    for seconds in (1.5, 3.0, 8.0):
        for melody, wave in melodies(banks.music[0], 60, seconds):
            low, high = ranges[melody.instrument]
            half_beat = 30 / melody.tempo
            assert melody.notes
            assert len(wave) <= seconds * SAMPLE_RATE + 1
            assert np.sqrt(np.mean(np.square(wave))) == pytest.approx(1, abs=1e-3)
            assert melody.offset <= seconds + 1e-9
            for note in melody.notes:
                assert low <= note.pitch <= high
                assert 0.1 < note.offset - note.onset <= NOTE
                assert note.onset / half_beat == pytest.approx(round(note.onset / half_beat))
            for one, other in zip(melody.notes, melody.notes[1:], strict=False):
                assert one.offset <= other.onset + 1e-9
            tempos.add(melody.tempo)
            names.add(melody.instrument)
            changes.add(melody.loudness)
    assert names == set(ranges)
    assert changes == {"steady", "louder", "softer"}
    assert min(tempos) >= 50
    assert max(tempos) <= 180
    assert len(tempos) > 15


def test_loudness_changes_as_it_says(banks: Banks) -> None:
    """The level of the last note's attack against that of the first."""
    rise: dict[str, list[float]] = {"steady": [], "louder": [], "softer": []}
    for melody, wave in melodies(banks.music[0], 80, 8.0):
        if len(melody.notes) >= 4:
            attacks = [
                np.abs(wave[round(n.onset * SAMPLE_RATE) :][:1600]).max()
                for n in (melody.notes[0], melody.notes[-1])
            ]
            rise[melody.loudness].append(20 * np.log10(attacks[1] / attacks[0]))
    assert all(len(values) >= 5 for values in rise.values())
    assert min(rise["louder"]) > 6
    assert max(rise["softer"]) < -6
    assert np.abs(rise["steady"]).max() < 4


def test_a_seed_gives_the_same_melody(banks: Banks) -> None:
    one, two, other = (play(4.0, np.random.default_rng(seed), banks.music[0]) for seed in (3, 3, 4))
    assert one[0] == two[0]
    assert (one[1] == two[1]).all()
    assert one[0] != other[0]


def test_instruments_are_all_different() -> None:
    assert len({i.name for i in INSTRUMENTS}) == len({i.program for i in INSTRUMENTS}) == 12
    assert all(0 <= i.program < 128 and i.high - i.low >= 24 for i in INSTRUMENTS)


def test_banks_that_are_there_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted call leaves whole banks alone behind; the next plays what is missing."""
    played: list[str] = []

    def fake(instrument: Instrument, soundfont: str) -> np.ndarray:
        if len(played) == 5 and "stop" not in played:
            played.append("stop")
            raise KeyboardInterrupt
        played.append(instrument.name)
        return np.zeros((3, 1, 2), np.int16)

    monkeypatch.setattr(music, "_play", fake)
    with pytest.raises(KeyboardInterrupt):
        make_banks(tmp_path, SOUNDFONTS[0])
    where = make_banks(tmp_path, SOUNDFONTS[0])
    assert where == tmp_path / "FluidR3_GM"
    assert sorted(p.name for p in where.iterdir()) == sorted(f"{i.name}.npy" for i in INSTRUMENTS)
    played.remove("stop")
    assert played == [i.name for i in INSTRUMENTS]


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(AfnextError, match="mido is not installed"):
        make_banks(tmp_path, SOUNDFONTS[0])
    monkeypatch.undo()
    pytest.importorskip("mido")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_programs()[0] == "fluidsynth"
    with pytest.raises(AfnextError, match="Debian packages fluidsynth, fluid-soundfont-gm"):
        make_banks(tmp_path, SOUNDFONTS[0])


def test_evaluation_has_another_soundfont() -> None:
    assert HELD_OUT_SOUNDFONT not in SOUNDFONTS
    if not missing_programs():
        files = {music._find(name).resolve() for name in (*SOUNDFONTS, HELD_OUT_SOUNDFONT)}
        assert len(files) == len(SOUNDFONTS) + 1


@pytest.mark.skipif(
    bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"
)
@pytest.mark.parametrize("soundfont", [*SOUNDFONTS, HELD_OUT_SOUNDFONT])
def test_fluidsynth_plays_each_note_where_the_bank_has_it(soundfont: str) -> None:
    """From its first sample on, at its pitch, louder where it is struck harder, fading before the next."""
    pytest.importorskip("mido")
    notes = music._play(Instrument("piano", 0, 60, 64), soundfont).astype(np.float64)
    assert notes.shape == (3, 5, round(2.5 * SAMPLE_RATE))
    for level in notes:
        for pitch, wave in enumerate(level, 60):
            heard = np.flatnonzero(np.abs(wave) > 0.05 * np.abs(wave).max())
            assert heard[0] < 0.01 * SAMPLE_RATE
            assert np.abs(wave[-160:]).max() < 0.05 * np.abs(wave).max()
            ratio = strongest(wave[800:HELD]) / frequency(pitch)
            assert abs(1200 * np.log2(ratio / round(ratio))) < 25
    loudness = np.sqrt(np.mean(np.square(notes), 2))
    assert (np.diff(loudness, axis=0) > 0).all()
    assert np.abs(notes).max() < 32767
