"""Clips: the labels are where the sound is, the seed decides everything, the gaps hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afnext.training.synthesis import CLASSES, SAMPLE_RATE, clip, generate, open_clips, render
from afnext.training.synthesis.__main__ import main
from afnext.training.synthesis.scenes import ONSET_GAP, REPEAT_GAP, most_events


@pytest.mark.parametrize("name", CLASSES)
def test_an_event_fills_its_length_at_unit_loudness(name: str) -> None:
    """Labels are honest only if sound starts at the start and lasts for most of the length."""
    wave = render(name, SAMPLE_RATE, np.random.default_rng(0))
    assert wave.dtype == np.float32
    assert np.isfinite(wave).all()
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(1, abs=0.01)
    level = np.abs(wave).reshape(5, -1).max(1)  # 200 ms blocks: every repetition is shorter
    assert level[0] > 0.1 * level.max()
    assert level[:4].min() > 0.01 * level.max()


def test_classes_sound_different() -> None:
    """Nearest mean spectrum over 80 bands tells most classes apart: there is something to learn."""

    def bands(name: str, seed: int) -> np.ndarray:
        wave = render(name, 8000, np.random.default_rng(seed))
        power = np.abs(np.fft.rfft(wave)[:4000]) ** 2
        return np.log10(power.reshape(80, -1).sum(1) + 1e-3)

    means = np.stack([np.mean([bands(c, s) for s in range(12)], 0) for c in CLASSES])
    right = [
        int(np.argmin(((means - bands(c, 100 + s)) ** 2).sum(1))) == i
        for i, c in enumerate(CLASSES)
        for s in range(4)
    ]
    assert np.mean(right) > 0.5  # chance is 1/16


@pytest.mark.parametrize("seconds", [2.0, 8.0, 30.0])
def test_scenes_keep_their_rules(seconds: float) -> None:
    for index in range(30):
        scene = clip(7, seconds, index)
        assert len(scene.samples) == round(seconds * SAMPLE_RATE)
        assert np.abs(scene.samples).max() <= 1
        assert len(scene.events) <= most_events(seconds)
        assert list(scene.events) == sorted(scene.events, key=lambda e: e.onset)
        for i, a in enumerate(scene.events):
            assert 0 <= a.onset < a.offset <= seconds
            for b in scene.events[i + 1 :]:
                assert b.onset - a.onset > ONSET_GAP - 0.01  # lengths are whole 10 ms
                assert a.label != b.label or b.onset - a.offset > REPEAT_GAP - 0.01


def test_sound_is_where_the_label_says() -> None:
    """Energy in labelled stretches exceeds that elsewhere in the same clip, in nearly every clip."""
    louder = []
    for index in range(60):
        scene = clip(11, 5.0, index)
        active = np.zeros(len(scene.samples), bool)
        for e in scene.events:
            active[round(e.onset * SAMPLE_RATE) : round(e.offset * SAMPLE_RATE)] = True
        if active.any() and not active.all():
            power = scene.samples.astype(np.float64) ** 2
            louder.append(power[active].mean() > 2 * power[~active].mean())
    assert np.mean(louder) > 0.9


def test_a_seed_gives_the_same_clips_on_any_number_of_workers(tmp_path: Path) -> None:
    counts = {2.0: 70, 2.4: 3}
    for workers in (1, 2):
        list(generate(tmp_path / str(workers), counts, seed=5, workers=workers))
    for one, two in zip(open_clips(tmp_path / "1"), open_clips(tmp_path / "2"), strict=True):
        assert one.events == two.events
        assert (one.samples == two.samples).all()
    assert not (one.samples[0] == one.samples[1]).all()
    again = clip(5, 2.4, 2)
    assert (np.round(again.samples * 32767) == one.samples[2]).all()


def test_generate_keeps_what_is_there_and_refuses_another_seed(tmp_path: Path) -> None:
    list(generate(tmp_path, {2.0: 2}, seed=5))
    stamp = (tmp_path / "clips-2000.npy").stat().st_mtime_ns
    list(generate(tmp_path, {2.0: 2}, seed=5))
    assert (tmp_path / "clips-2000.npy").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="seed 5, asked for 6"):
        list(generate(tmp_path, {2.0: 2}, seed=6))
    with pytest.raises(ValueError, match="no clips"):
        open_clips(tmp_path / "nowhere")


def test_the_demo_writes_a_scene_and_says_its_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["demo", str(tmp_path / "scene.wav"), "--index", "3"])
    said = capsys.readouterr()
    assert said.out == "True events: engine <t>3.3-4.7</t>.\n"
    assert "Synthesised" in said.err
    assert (tmp_path / "scene.wav").stat().st_size > 8 * SAMPLE_RATE * 2
