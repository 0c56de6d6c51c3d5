"""Banks: made once by any number of workers, kept, and nothing of evaluation's in training's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from afnext.training.synthesis import banks as module
from afnext.training.synthesis import music
from afnext.training.synthesis.banks import FULL_SCALE, Banks, make
from afnext.training.synthesis.music import HELD_OUT_SOUNDFONT, SOUNDFONTS, Instrument
from afnext.training.synthesis.sentences import is_held_out, words
from afnext.training.synthesis.speech import (
    HELD_OUT_VOICES,
    KNOWN_VOICES,
    VOICES,
    Voice,
    missing_programs,
)
from tests.training.banks import HELD_OUT_SPEAKERS, SPEAKERS

pytestmark = pytest.mark.slow


def spoken(text: str, voice: Voice, rate: float, pitch: float) -> np.ndarray:
    rng = np.random.default_rng([len(voice.code), *text.encode(), round(1e6 * rate * pitch)])
    wave = rng.standard_normal(100 + len(text)).astype(np.float32)
    return wave / wave.std()


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Without the programs of the operating system; what is played is noted."""
    played: list[str] = []

    def note(instrument: Instrument, soundfont: str) -> np.ndarray:
        played.append(soundfont)
        return np.zeros((3, 1, 2), np.int16)

    monkeypatch.setattr(module, "speak", spoken)
    monkeypatch.setattr(music, "_play", note)
    return played


def made(folder: Path, split: str, sentences: int = 60, seed: int = 1, workers: int = 1) -> Banks:
    *counts, (last, banks) = make(folder, split, sentences, seed, workers)
    assert all(found is None for _, found in counts)
    assert last == sentences
    assert banks is not None
    return banks


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_sentences_come_from_the_bank_as_they_were_spoken(tmp_path: Path, fonts: list[str]) -> None:
    banks = made(tmp_path, "train")
    assert len(banks.spoken) == 60
    assert banks.folder == tmp_path / "train"
    fonts = ("FluidR3_GM", "MuseScore_General_Lite", "sf_GMbank")
    assert banks.music == tuple(tmp_path / "train" / name for name in fonts)
    assert banks.varied
    assert sum(map(len, banks.by_speaker.values())) == 60
    for item in banks.spoken:
        wave = banks.speech(item)
        assert wave.shape == (item.size,)
        assert wave.dtype == np.float32
        assert wave.std() == pytest.approx(1, abs=0.01)
    last = banks.spoken[-1]
    assert last.first + last.size == len(banks._speech)


def test_nothing_of_evaluation_is_in_training(tmp_path: Path, fonts: list[str]) -> None:
    """No sentence, no voice, no soundfont; of each a call for one split sees none of the other."""
    train = made(tmp_path, "train", 200)
    assert set(fonts) == set(SOUNDFONTS)
    fonts.clear()
    held_out = made(tmp_path, "held-out", 200)
    assert set(fonts) == {HELD_OUT_SOUNDFONT}
    assert set(train.by_speaker) == {voice.name for voice in VOICES}
    assert set(held_out.by_speaker) == {voice.name for voice in HELD_OUT_VOICES}
    assert not any(is_held_out(item.text) for item in train.spoken)
    assert all(is_held_out(item.text) for item in held_out.spoken)
    assert not {font.name for font in train.music} & {font.name for font in held_out.music}
    assert not held_out.varied


def test_known_voices_say_what_no_training_set_says(tmp_path: Path, fonts: list[str]) -> None:
    """So that an evaluation can tell new voices from new sentences."""
    known = made(tmp_path, "known voices", 60)
    assert set(fonts) == {SOUNDFONTS[0]}
    assert set(known.by_speaker) == {voice.name for voice in KNOWN_VOICES}
    assert set(KNOWN_VOICES) <= set(VOICES)
    assert len(KNOWN_VOICES) == 19
    assert all(is_held_out(item.text) for item in known.spoken)


def test_any_number_of_workers_makes_the_same(tmp_path: Path, fonts: list[str]) -> None:
    made(tmp_path / "1", "train", 120)
    made(tmp_path / "2", "train", 120, workers=2)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    made(tmp_path / "3", "train", 120, seed=2)
    one, other = (made(tmp_path / f, "train", 120, seed=s) for f, s in (("1", 1), ("3", 2)))
    assert len({i.text for i in (*one.spoken, *other.spoken)}) > 230  # of 240


def test_a_larger_bank_begins_with_the_smaller_one(tmp_path: Path, fonts: list[str]) -> None:
    small, large = made(tmp_path / "s", "train", 20), made(tmp_path / "l", "train", 70)
    assert large.spoken[:20] == small.spoken


def test_what_is_there_is_kept_and_another_seed_refused(
    tmp_path: Path, fonts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "train")
    before = contents(tmp_path)
    monkeypatch.setattr(module, "_say_some", None)  # nothing is said a second time
    fonts.clear()
    made(tmp_path, "train")
    assert contents(tmp_path) == before
    assert not fonts
    with pytest.raises(ValueError, match=r"holds banks of .*'seed': 1.* asked for .*'seed': 2"):
        made(tmp_path, "train", seed=2)
    with pytest.raises(
        ValueError, match="must be one of train, held-out, known voices, got 'test'"
    ):
        made(tmp_path, "test")


def test_a_killed_call_is_made_up_for(tmp_path: Path, fonts: list[str]) -> None:
    """Whatever of the files was written when it ended: the next call has the same in the end."""
    made(tmp_path / "whole", "train")
    wanted = contents(tmp_path / "whole")
    for lacking in (
        {"manifest.json"},
        {"manifest.json", "speech.jsonl"},
        {"manifest.json", "speech.jsonl", "speech.npy"},
        {"manifest.json", "FluidR3_GM/harp.npy"},
    ):
        folder = tmp_path / f"without {len(lacking)} {sorted(lacking)[0][0]}"
        for name, content in wanted.items():
            if not any(name.endswith(x) for x in lacking):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        (folder / "train" / "speech.part.npy").write_bytes(b"cut sh")
        made(folder, "train")
        assert contents(folder) == wanted


@pytest.mark.skipif(
    bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"
)
def test_real_voices_fill_a_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each speaker of evaluation twice, nothing cut off, no sentence without sound."""
    monkeypatch.setattr(music, "_play", lambda *_: np.zeros((3, 1, 2), np.int16))
    banks = made(tmp_path, "held-out", 2 * len(HELD_OUT_VOICES))
    assert Counter(item.speaker for item in banks.spoken) == {v.name: 2 for v in HELD_OUT_VOICES}
    for item in banks.spoken:
        wave = banks.speech(item)
        assert 0.1 < item.size / 16_000 / len(words(item.text)) < 0.8
        assert wave.std() == pytest.approx(1, abs=0.02)
        assert np.abs(wave).max() < 32767 / FULL_SCALE


def test_banks_for_tests_are_like_real_ones(banks: Banks, held_out_banks: Banks) -> None:
    """Of unit RMS, with every instrument's notes at its pitches, and as little shared between the splits."""
    assert set(banks.by_speaker) == set(SPEAKERS)
    assert set(held_out_banks.by_speaker) == set(HELD_OUT_SPEAKERS)
    assert not any(is_held_out(item.text) for item in banks.spoken)
    assert all(is_held_out(item.text) for item in held_out_banks.spoken)
    for item in banks.spoken:
        assert 0.5 < item.size / 16_000 < 4
        assert banks.speech(item).std() == pytest.approx(1, abs=0.01)
    for instrument in music.INSTRUMENTS:
        notes = music.bank(banks.music[0], instrument.name)
        assert notes.shape == (3, instrument.high - instrument.low + 1, 28_800)
        assert np.abs(notes[:, :, :160]).max(axis=(0, 2)).min() > 1000
