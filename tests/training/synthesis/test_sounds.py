"""Sounds: each fills its length, classes differ, and a class is no one waveform."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from afnext.training.synthesis.sounds import (
    CLASSES,
    SAMPLE_RATE,
    SYNTHESISERS,
    animals,
    impacts,
    render,
    signals,
    textures,
)
from afnext.training.tasks.lexicon import UNHEARD, WORDS, article

pytestmark = pytest.mark.slow

METHODS = [(name, i) for name in CLASSES for i in range(len(SYNTHESISERS[name]))]
IDS = [SYNTHESISERS[name][i].__name__ for name, i in METHODS]
FRAME = 160


def levels(wave: np.ndarray) -> np.ndarray:
    """RMS of each 10 ms."""
    return np.sqrt(np.mean(np.square(wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)), 1))


def features(name: str, method: int, seed: int) -> np.ndarray:
    """Log spectrum in 64 bands, and how the loudness moves: its spectrum up to 50 Hz, in dB."""
    wave = render(name, SAMPLE_RATE, np.random.default_rng(seed), method)
    power = np.abs(np.fft.rfft(wave)[:8000]) ** 2
    bands = 10 * np.log10(power.reshape(64, -1).sum(1) / power.sum() + 1e-4)
    loudness = levels(wave)
    moves = np.abs(np.fft.rfft(loudness / loudness.mean() - 1))[1:33]
    return np.concatenate([bands, 20 * np.log10(moves + 1)])


@pytest.fixture(scope="module")
def heard() -> dict[tuple[str, int], np.ndarray]:
    """Features of sixteen examples of every method."""
    return {m: np.stack([features(*m, seed) for seed in range(16)]) for m in METHODS}


def nearest(groups: list[np.ndarray]) -> float:
    """The share of the last half of each group that lies nearest to its own first half's mean."""
    means = np.stack([group[:8].mean(0) for group in groups])
    right = [
        int(np.argmin(((means - item) ** 2).sum(1))) == i
        for i, group in enumerate(groups)
        for item in group[8:]
    ]
    return float(np.mean(right))


@pytest.mark.parametrize(("name", "method"), METHODS, ids=IDS)
@pytest.mark.parametrize("seconds", [0.4, 2.2])
def test_an_event_is_heard_from_its_start_at_unit_loudness(
    name: str, method: int, seconds: float
) -> None:
    """Labels are honest only if sound starts at the start, lasts, and nothing clicks at the ends."""
    n = round(seconds * SAMPLE_RATE)
    for seed in range(3):
        wave = render(name, n, np.random.default_rng(seed), method)
        assert wave.shape == (n,)
        assert wave.dtype == np.float32
        assert np.isfinite(wave).all()
        assert np.sqrt(np.mean(wave**2)) == pytest.approx(1, abs=0.01)
        assert wave[0] == wave[-1] == 0
        level = levels(wave)
        heard = np.flatnonzero(level > 0.05 * level.max())
        assert heard[0] <= 6  # swells and scattered grains take up to 60 ms
        assert heard[-1] >= 0.4 * len(level)  # the last step of two may come in the middle


def test_every_class_has_several_methods_and_none_is_forgotten() -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 26
    assert all(len(methods) >= 2 for methods in SYNTHESISERS.values())
    written = {
        name
        for module in (animals, impacts, signals, textures)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
    }
    assert written == {m.__name__ for methods in SYNTHESISERS.values() for m in methods}


def test_methods_of_a_class_differ(heard: dict[tuple[str, int], np.ndarray]) -> None:
    """Even means of spectrum and loudness tell them apart: they are more than other parameters of one."""
    for name in CLASSES:
        own = [heard[name, i] for i in range(len(SYNTHESISERS[name]))]
        assert nearest(own) >= 0.85, name


def test_methods_of_all_classes_differ(heard: dict[tuple[str, int], np.ndarray]) -> None:
    """The same means tell most of all methods apart: there is something to learn, and it can be learnt."""
    assert nearest(list(heard.values())) > 0.8  # chance is 1 in 54


def test_an_example_is_no_copy_of_another() -> None:
    for name, method in METHODS:
        one, again, other = (
            render(name, 8000, np.random.default_rng(seed), method) for seed in (1, 1, 2)
        )
        assert (one == again).all()
        assert np.corrcoef(one, other)[0, 1] < 0.9, SYNTHESISERS[name][method].__name__


def test_a_class_draws_all_its_methods() -> None:
    """Without a method named, each is used: their first samples tell which it was."""
    for name in CLASSES:
        drawn = {int(np.random.default_rng(s).integers(len(SYNTHESISERS[name]))) for s in range(20)}
        assert drawn == set(range(len(SYNTHESISERS[name])))
        first = render(name, 800, np.random.default_rng(0))
        rng = np.random.default_rng(0)
        method = int(rng.integers(len(SYNTHESISERS[name])))
        assert (first == render(name, 800, rng, method)).all()


def test_there_are_words_for_every_class_and_no_other() -> None:
    assert set(WORDS) == {*CLASSES, "speech", "music"}
    nouns = [noun for word in WORDS.values() for noun in word.nouns]
    assert len(set(nouns)) == len(
        nouns
    )  # a noun that meant two classes would have two true answers
    assert not set(UNHEARD) & {*nouns, *CLASSES}
    for name, word in WORDS.items():
        assert name == word.nouns[0]
        assert set(word.confused_with) <= set(WORDS) - {name}
        assert word.verbs


@pytest.mark.parametrize(
    ("noun", "said"),
    [
        ("bell", "a bell"), ("owl", "an owl"), ("engine", "an engine"), ("footsteps", "footsteps"),
        ("wind", "wind"), ("barking", "barking"), ("organ", "an organ"),
    ],
)  # fmt: skip
def test_articles(noun: str, said: str) -> None:
    assert article(noun) == said
