"""Sentences: spelled as they are spoken, grammatical, many words, and a tenth kept apart."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from afnext.training.synthesis import sentences
from afnext.training.synthesis.sentences import (
    is_held_out,
    number,
    plural,
    sentence,
    time_of_day,
    vocabulary,
    words,
)

pytestmark = pytest.mark.slow

UNITS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def value(text: str) -> int:
    """What a number in words is, read from left to right."""
    total, part = 0, 0
    for word in text.split():
        if word in ("hundred", "thousand"):
            total += part * (100 if word == "hundred" else 1000)
            part = 0
        elif word != "and":
            part += UNITS.index(word) if word in UNITS else 10 * (TENS.index(word) + 2)
    return total + part


@pytest.fixture(scope="module")
def many() -> list[str]:
    rng = np.random.default_rng(1)
    return [sentence(rng) for _ in range(4000)]


def test_every_number_is_read_back() -> None:
    assert [value(number(n)) for n in range(1, 10_000)] == list(range(1, 10_000))
    assert number(115) == "one hundred and fifteen"
    assert number(1999) == "one thousand nine hundred and ninety nine"
    assert number(7040) == "seven thousand and forty"
    for wrong in (0, 10_000, -1):
        with pytest.raises(ValueError, match=f"1 to 9999, got {wrong}"):
            number(wrong)


@pytest.mark.parametrize(
    ("hour", "minute", "said"),
    [
        (0, 0, "twelve o'clock"),
        (9, 20, "twenty past nine"),
        (12, 45, "a quarter to one"),
        (13, 15, "a quarter past one"),
        (23, 55, "five to twelve"),
        (10, 35, "twenty five to eleven"),
        (11, 30, "half past eleven"),
        (8, 30, "eight thirty"),
    ],
)
def test_times_of_day_are_said_as_people_do(hour: int, minute: int, said: str) -> None:
    assert time_of_day(60 * hour + minute) == said


def test_no_two_times_of_half_a_day_sound_alike() -> None:
    assert len({time_of_day(m) for m in range(0, 720, 5)}) == 144
    assert [time_of_day(m) for m in range(0, 720, 5)] == [
        time_of_day(m) for m in range(720, 1440, 5)
    ]


def test_sentences_read_as_english(many: list[str]) -> None:
    for text in many:
        assert re.fullmatch(r"[A-Z][A-Za-z' ]+[.?]", text), text
        assert "  " not in text
        assert not re.search(r"\b[Aa] [aeiou]", text), text
        assert not re.search(r"\b[Aa]n [^aeiou]", text), text
        assert "costs one pounds" not in text
        assert not re.search(r"\b([A-Z][a-z]+) and \1\b", text), text
        assert 5 <= len(words(text)) <= 13
    asked = {text.split()[0] for text in many if text.endswith("?")}
    assert asked == {"Did", "Will", "Can", "Where"}
    assert plural("knife") == "knives"
    assert [plural(w) for w in ("box", "watch", "key", "city")] == [
        "boxes", "watches", "keys", "cities",
    ]  # fmt: skip


def test_there_is_much_to_be_learnt(many: list[str]) -> None:
    """Hundreds of words, numbers, names and times of day; hardly two sentences alike."""
    known = vocabulary(8000)
    assert len(known) >= 500
    said = Counter(word for text in many for word in words(text))
    assert set(said) <= known
    for group in (
        sentences.NAMES,
        sentences.THINGS,
        sentences.PLACES,
        UNITS[1:],
        TENS,
        ["o'clock"],
    ):
        assert {word.lower() for word in group} <= set(said)
    assert any("past" in text or " to " in text for text in many)
    assert len(set(many)) > 0.98 * len(many)
    assert len({len(words(text)) for text in many}) >= 7


def test_every_pattern_occurs(many: list[str]) -> None:
    """A pattern is recognised by the words that it has outside its fields, in their order."""
    for pattern in sentences.PATTERNS:
        fixed = [re.escape(part) for part in re.split(r"\{\w+\}", pattern)]
        assert any(re.fullmatch(".+".join(fixed), text) for text in many), pattern


def test_held_out_sentences_are_a_tenth_and_in_no_training_set(many: list[str]) -> None:
    assert not any(map(is_held_out, many))
    rng = np.random.default_rng(1)
    apart = [sentence(rng, held_out=True) for _ in range(400)]
    assert all(map(is_held_out, apart))
    assert not set(apart) & set(many)
    drawn = [sentences._draw(rng) for _ in range(4000)]
    assert np.mean([is_held_out(text) for text in drawn]) == pytest.approx(0.1, abs=0.02)  # 4 sigma


def test_what_is_held_out_does_not_hang_on_spelling() -> None:
    """Another case or mark is no way into the training set."""
    rng = np.random.default_rng(2)
    for held_out in (False, True):
        text = sentence(rng, held_out)
        assert is_held_out(text.upper().rstrip(".?") + "!") == held_out


def test_a_seed_gives_the_same_sentences() -> None:
    one, two, other = (
        [sentence(np.random.default_rng(seed)) for _ in range(3)] for seed in (5, 5, 6)
    )
    assert one == two
    assert one != other
