"""Sentences in other languages: whole, many, a tenth apart, said by voices of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afnext.errors import AfnextError
from afnext.training.config import SynthesisConfig
from afnext.training.synthesis import banks as module
from afnext.training.synthesis import music
from afnext.training.synthesis.banks import make
from afnext.training.synthesis.languages import languages, sentence_in
from afnext.training.synthesis.music import Instrument
from afnext.training.synthesis.sentences import is_held_out, words
from afnext.training.synthesis.speech import Voice, voices_in

pytestmark = pytest.mark.slow

MARKS = set(".?¿,'")
LETTERS = {"es": "áéíóúñü", "de": "äöüß", "fr": "àâçèéêîôùûœ"}


@pytest.mark.parametrize("language", list(languages()))
def test_sentences_are_whole_and_many(language: str) -> None:
    rng = np.random.default_rng(3)
    some = [sentence_in(language, rng) for _ in range(2000)]
    assert len(set(some)) > 1200
    for text in some:
        assert 3 <= len(words(text)) <= 14, text
        assert next(filter(str.isalpha, text)).isupper()
        assert text[-1] in ".?"
        assert {c for c in text if not c.isalpha()} <= MARKS | {" ", "-"}, text
    letters = set("".join(some).lower()) - set("abcdefghijklmnopqrstuvwxyz") - MARKS - {" ", "-"}
    assert letters
    assert letters <= set(LETTERS[language])
    used = " ".join(some)
    for name, phrases in languages()[language].items():
        if name != "patterns":
            assert sum(phrase.lower() in used.lower() for phrase in phrases) > 0.8 * len(phrases)


def test_what_is_held_out_is_no_sentence_of_training() -> None:
    rng = np.random.default_rng(4)
    assert all(is_held_out(sentence_in("de", rng, held_out=True)) for _ in range(20))
    assert not any(is_held_out(sentence_in("de", rng)) for _ in range(100))


def test_words_have_their_letters() -> None:
    assert words("¿Dónde está Lucía? C'est l'été.") == ["dónde", "está", "lucía", "c'est", "l'été"]


def test_languages_take_turns_with_english_and_have_voices_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(instrument: Instrument, soundfont: str) -> np.ndarray:
        return np.zeros((3, 1, 2), np.int16)

    monkeypatch.setattr(module, "speak", spoken)
    monkeypatch.setattr(music, "_play", note)
    *_, (_, banks) = make(tmp_path, "train", 60, 1, 1, ["es", "fr"])
    assert banks is not None
    speakers = [item.speaker.split("-")[0] for item in banks.spoken]
    assert speakers[1::3] == ["es"] * 20
    assert speakers[2::3] == ["fr"] * 20
    assert not {"es", "fr"} & set(speakers[::3])
    assert {item.speaker for item in banks.spoken[1::3]} == {
        voice.name for voice in voices_in("es")
    }
    with pytest.raises(ValueError, match=r"holds banks of .*'es', 'fr'"):
        next(make(tmp_path, "train", 60, 1))
    with pytest.raises(ValueError, match=r"languages: must be among es, de, fr .* got 'tlh'"):
        next(make(tmp_path, "train", 60, 1, 1, ["tlh"]))


def spoken(text: str, voice: Voice, rate: float, pitch: float) -> np.ndarray:
    rng = np.random.default_rng(len(text))
    return rng.standard_normal(100 + len(text)).astype(np.float32)


def test_an_unknown_language_is_refused_as_a_recipe_is_read() -> None:
    with pytest.raises((ValueError, AfnextError), match="languages: must be among"):
        SynthesisConfig(1, 10, {}, languages=["tlh"])
