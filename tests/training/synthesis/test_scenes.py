"""Scenes: the labels are where the sound is, the gaps hold, and the seed decides everything."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from afnext.training.synthesis import acoustics
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.music import Melody
from afnext.training.synthesis.scenes import (
    AUDIBLE,
    KINDS,
    ONSET_GAP,
    REPEAT_GAP,
    Event,
    Scene,
    Utterance,
    _Track,
    compose,
    most_events,
)
from afnext.training.synthesis.sounds import CLASSES, SAMPLE_RATE

pytestmark = pytest.mark.slow

FRAME = 160
LENGTHS = {
    "sounds": (1.0, 5.0, 30.0), "monologue": (4.0, 12.0), "dialogue": (8.0, 30.0),
    "music": (3.0, 14.0, 28.0), "mixed": (6.0, 30.0), "sparse": (60.0,),
    "dense": (20.0, 60.0),
}  # fmt: skip
CASES = [(kind, seconds) for kind, lengths in LENGTHS.items() for seconds in lengths]
Span = Event | Utterance | Melody


def dry(kind: str, seconds: float, seed: int, banks: Banks) -> _Track:
    """What a scene is before noise, rooms and microphones."""
    track = _Track(seconds, np.random.default_rng(seed), banks)
    KINDS[kind](track)
    return track


def spans(of: _Track | Scene) -> list[Span]:
    return [*of.events, *of.utterances, *of.melodies]


def inside(items: list[Span], n: int, margin: float = 0.0) -> np.ndarray:
    """Which samples a label covers, widened by a margin in seconds."""
    covered = np.zeros(n, bool)
    for item in items:
        first = round((item.onset - margin) * SAMPLE_RATE)
        covered[max(0, first) : round((item.offset + margin) * SAMPLE_RATE)] = True
    return covered


def levels(wave: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)), 1))


@pytest.mark.parametrize(("kind", "seconds"), CASES)
def test_scenes_keep_their_rules(kind: str, seconds: float, banks: Banks) -> None:
    """Everything lies within the clip and begins at another time; nothing meets its own kind."""
    found = 0
    for seed in range(12):
        scene = compose(kind, seconds, np.random.default_rng(seed), banks)
        assert scene.samples.shape == (round(seconds * SAMPLE_RATE),)
        assert scene.samples.dtype == np.float32
        assert np.isfinite(scene.samples).all()
        assert np.abs(scene.samples).max() <= 1
        for kept in (scene.events, scene.utterances, scene.melodies):
            onsets = [item.onset for item in kept]
            assert onsets == sorted(onsets)
        for item in spans(scene):
            assert 0 <= item.onset < item.offset <= seconds
        for a, b in combinations(sorted(spans(scene), key=lambda i: i.onset), 2):
            assert b.onset - a.onset >= ONSET_GAP - 1e-9
        by_name: dict[str, list[Span]] = {"music": list(scene.melodies)}
        for event in scene.events:
            by_name.setdefault(event.label, []).append(event)
        for utterance in scene.utterances:
            # In dialogues people interrupt one another; nobody interrupts themselves.
            name = utterance.speaker if kind == "dialogue" else "speech"
            by_name.setdefault(f"says {name}", []).append(utterance)
        for items in by_name.values():
            for a, b in pairwise(items):
                assert b.onset - a.offset >= REPEAT_GAP - 1e-9
        found += len(spans(scene))
    assert found >= 12


def test_gaps_hold_where_there_is_hardly_room(banks: Banks) -> None:
    """As many of two classes as a clip takes: some lie close, none closer than the least distances."""
    repeats, onsets = [], []
    for seed in range(12):
        track = _Track(15.0, np.random.default_rng(seed), banks)
        for label in ("bell", "dog") * 20:
            track.sound(label)
        events = sorted(track.events, key=lambda e: e.onset)
        onsets += [b.onset - a.onset for a, b in pairwise(events)]
        for label in ("bell", "dog"):
            own = [e for e in events if e.label == label]
            repeats += [b.onset - a.offset for a, b in pairwise(own)]
    assert REPEAT_GAP <= min(repeats) < REPEAT_GAP + 0.02
    assert ONSET_GAP <= min(onsets) < ONSET_GAP + 0.02


@pytest.mark.parametrize("overlaps", [0, 1])
def test_what_is_to_be_heard_alone_meets_nothing(overlaps: int, banks: Banks) -> None:
    met = []
    for seed in range(12):
        track = _Track(6.0, np.random.default_rng(seed), banks)
        for label in ("bell", "dog", "cat"):
            track.sound(label)
        before = list(track.events)
        if track.sound("hiss", overlaps):
            new = track.events[-1]
            met.append(sum(e.onset < new.offset and new.onset < e.offset for e in before))
    assert max(met) == overlaps


@pytest.mark.parametrize(("kind", "seconds"), CASES)
def test_sound_is_inside_the_labels_alone(kind: str, seconds: float, banks: Banks) -> None:
    """Without noise: outside all labels nothing is louder than what an event's end may leave over (-26 dB of
    its loudest moment), and each label begins and ends with sound."""
    for seed in range(8):
        track = dry(kind, seconds, seed, banks)
        items = spans(track)
        if not items:
            assert not track.mix.any()
            continue
        level = levels(track.mix)
        loudest = level.max()
        outside = ~inside(items, len(level) * FRAME, margin=0.01).reshape(-1, FRAME).any(1)
        assert level[outside].max(initial=0) <= 1.01 * AUDIBLE * loudest
        for item in items:
            own = level[int(item.onset * 100) : int(np.ceil(item.offset * 100)) + 1]
            threshold = 0.9 * AUDIBLE * own.max() if not isinstance(item, Melody) else 1e-3
            heard = np.flatnonzero(own > threshold)
            assert heard[0] <= 6  # 60 ms: sounds that swell
            if not any(o is not item and o.onset < item.offset < o.offset for o in items):
                assert len(own) - heard[-1] <= (4 if not isinstance(item, Melody) else 6)


def test_speech_is_where_it_is_said_to_the_sample(banks: Banks) -> None:
    """Of a monologue without other sounds the first and last sample of each sentence are not zero, the
    neighbours outside are; between them lies the bank's sentence."""
    said = {item.text: item for item in banks.spoken}
    checked = 0
    for seed in range(30):
        track = dry("monologue", 10.0, seed, banks)
        if track.events:
            continue
        for utterance in track.utterances:
            first, last = (round(t * SAMPLE_RATE) for t in (utterance.onset, utterance.offset))
            assert not track.mix[first - 20 : first].any()
            assert not track.mix[last : last + 20].any()
            wave = banks.speech(said[utterance.text])
            assert said[utterance.text].speaker == utterance.speaker
            gain = track.mix[first:last] @ wave / (wave @ wave)
            assert np.abs(track.mix[first:last] - gain * wave).max() < 1e-6
            checked += 1
    assert checked > 30


def test_what_is_labelled_stands_out_in_the_finished_recording(banks: Banks) -> None:
    """Noise, rooms and codecs included, labelled stretches are louder than the rest in nearly every clip."""
    louder = []
    for kind in ("sounds", "monologue", "music", "mixed"):
        for seed in range(15):
            scene = compose(kind, 6.0, np.random.default_rng(seed), banks)
            active = inside(spans(scene), len(scene.samples))
            if active.any() and not active.all():
                power = scene.samples.astype(np.float64) ** 2
                louder.append(power[active].mean() > 2 * power[~active].mean())
    assert len(louder) > 45
    assert np.mean(louder) > 0.93


def test_a_seed_gives_the_same_scene(banks: Banks) -> None:
    for kind, lengths in LENGTHS.items():
        one, two, other = (
            compose(kind, lengths[0], np.random.default_rng(seed), banks) for seed in (1, 1, 2)
        )
        assert (one.samples == two.samples).all()
        assert spans(one) == spans(two)
        assert not (one.samples == other.samples).all()


def test_kinds_hold_what_they_are_named_after(banks: Banks) -> None:
    def scenes(kind: str, seconds: float) -> list[_Track]:
        return [dry(kind, seconds, seed, banks) for seed in range(16)]

    assert not any(t.utterances or t.melodies for t in scenes("sounds", 8.0))
    for track in scenes("monologue", 10.0):
        assert len({u.speaker for u in track.utterances}) == 1
        assert not track.melodies
    talks = scenes("dialogue", 20.0)
    for track in talks:
        assert 2 <= len({u.speaker for u in track.utterances}) <= 3
        assert all(a.speaker != b.speaker for a, b in pairwise(track.utterances))
    overlaps = [any(b.onset < a.offset for a, b in pairwise(track.utterances)) for track in talks]
    assert np.mean(overlaps) == pytest.approx(0.5, abs=0.3)  # 2.7 sigma
    assert all(len(t.melodies) == 1 and not t.utterances for t in scenes("music", 8.0))
    assert np.mean([len(t.melodies) for t in scenes("music", 28.0)]) > 1.5
    mixtures = scenes("mixed", 16.0)
    assert np.mean([bool(t.events) + bool(t.utterances) + bool(t.melodies) >= 2
                    for t in mixtures]) > 0.8  # fmt: skip
    for track in scenes("sparse", 60.0):
        counts = Counter(e.label for e in track.events)
        assert 1 in counts.values()
        assert 2 <= len(spans(track)) <= 9
    for track in scenes("dense", 40.0):
        assert 6 <= len(spans(track)) <= 20
        assert (
            max(Counter(e.label for e in track.events).values()) == 1
        )  # fewer than there are classes


def test_every_class_occurs_and_some_clips_hold_nothing(banks: Banks) -> None:
    tracks = [dry("sounds", 6.0, seed, banks) for seed in range(150)]
    counts = Counter(e.label for t in tracks for e in t.events)
    assert set(counts) == set(CLASSES)
    assert max(counts.values()) < 3 * min(counts.values())
    assert 0 < sum(not t.events for t in tracks) < 25  # 5 %: 8


def test_a_recording_without_anything_is_noise_or_digital_silence(
    banks: Banks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "sounds", lambda track: None)
    silent = [
        not compose("sounds", 0.5, np.random.default_rng(seed), banks).samples.any()
        for seed in range(200)
    ]
    assert np.mean(silent) == pytest.approx(0.1, abs=0.07)  # 3.3 sigma


def test_noise_lies_where_the_documentation_says(
    banks: Banks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 to 45 dB below a sound at 0 dB, the whole 10 to 30 dB below full scale."""
    monkeypatch.setitem(KINDS, "sounds", lambda track: track.spans.append(("x", 0.0, 0.1)))
    for change in ("room", "colour", "narrow", "clip", "lossy"):
        monkeypatch.setattr(acoustics, change, lambda mix, rng: mix)
    found = [
        20 * np.log10(compose("sounds", 0.5, np.random.default_rng(seed), banks).samples.std())
        for seed in range(60)
    ]
    assert -75.1 <= min(found) < -60
    assert -40 < max(found) <= -27.9


@pytest.mark.parametrize(
    ("seconds", "most"), [(0.5, 1), (2.0, 1), (5.0, 4), (10.0, 6), (30.0, 8), (600.0, 10)]
)
def test_longer_clips_hold_more(seconds: float, most: int) -> None:
    assert most_events(seconds) == most


def test_an_unknown_kind_is_refused(banks: Banks) -> None:
    with pytest.raises(ValueError, match=r"one of sounds, monologue, .* got 'opera'"):
        compose("opera", 5.0, np.random.default_rng(0), banks)
