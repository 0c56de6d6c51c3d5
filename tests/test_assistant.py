"""The Python face with the embedded model: ask, stream, options, several recordings, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import afnext
from afnext.reply import _StopStrings


@pytest.fixture(scope="module")
def nano() -> afnext.Assistant:
    return afnext.load("nano")


def test_ask_a_file(nano: afnext.Assistant, scene_file: Path) -> None:
    reply = nano.ask(scene_file, "What sounds do you hear, and when?")
    assert reply.text
    assert reply.stopped == "end"
    assert reply.segments
    assert all(0 <= s.start <= s.end <= 8.1 for s in reply.segments)
    assert reply.usage.audio_tokens == 200
    assert reply.usage.audio_seconds == 8.0
    assert reply.usage.prompt_tokens > 200
    assert reply.timings.first_token > 0
    json.dumps(reply.to_dict())


def test_stream_adds_up_to_the_reply(nano: afnext.Assistant, scene_file: Path) -> None:
    pieces = list(nano.stream([afnext.Message("user", "Describe this.", scene_file)]))
    reply = pieces[-1].reply
    assert reply is not None
    assert all(p.reply is None for p in pieces[:-1])
    assert "".join(p.text for p in pieces if not p.thinking) == reply.text


def test_paths_bytes_and_arrays_are_the_same_recording(
    nano: afnext.Assistant, scene_file: Path
) -> None:
    import soundfile

    samples, rate = soundfile.read(scene_file, dtype="float32")
    question = "What sounds do you hear, and when?"
    texts = {
        nano.ask(source, question).text
        for source in (
            scene_file,
            str(scene_file),
            scene_file.read_bytes(),
            samples,
            (samples, rate),
        )
    }
    assert len(texts) == 1


def test_several_recordings_and_turns(nano: afnext.Assistant, scene_file: Path) -> None:
    silence = np.zeros(32_000, np.float32)
    reply = nano.reply(
        [
            afnext.Message("user", "Same sounds?", [scene_file, silence]),
            afnext.Message("assistant", "No."),
            afnext.Message("user", "How many are there?"),
        ]
    )
    assert reply.usage.audio_tokens == 200 + 50


def test_text_alone(nano: afnext.Assistant) -> None:
    assert nano.reply("Hello?", max_tokens=4).usage.audio_tokens == 0


def test_the_same_seed_gives_the_same_text(nano: afnext.Assistant, scene_file: Path) -> None:
    def sample(seed: int) -> str:
        return nano.ask(
            scene_file, "Describe this.", temperature=3.0, seed=seed, max_tokens=40
        ).text

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_max_tokens_and_stop_strings(nano: afnext.Assistant, scene_file: Path) -> None:
    question = "What sounds do you hear, and when?"
    whole = nano.ask(scene_file, question)
    assert nano.ask(scene_file, question, max_tokens=3).stopped == "length"
    stopped = nano.ask(scene_file, question, stop=["</t>"])
    assert stopped.stopped == "stop"
    assert stopped.text == whole.text.partition("</t>")[0].rstrip()


def test_stop_strings_hold_back_no_more_than_they_must() -> None:
    stops = _StopStrings(("END", "EN!"))
    assert stops.push("abE") == "ab"
    assert stops.push("N") == ""
    assert stops.push("x") == "ENx"
    assert stops.push("yEN") == "y"
    assert stops.push("Dz") == ""
    assert stops.found


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        ("/nonexistent.wav", "nonexistent"),
        (b"not audio at all", "audio"),
        (np.full(16_000, np.nan, np.float32), "NaN"),
        (np.zeros(0, np.float32), "no samples"),
    ],
)
def test_bad_audio_is_one_clear_error(nano: afnext.Assistant, audio: object, said: str) -> None:
    with pytest.raises(afnext.AudioError, match=said):
        nano.ask(audio, "What is this?")


def test_bad_options_are_refused(nano: afnext.Assistant, scene_file: Path) -> None:
    with pytest.raises(ValueError, match="temperature"):
        nano.ask(scene_file, "What?", temperature=-1)
    with pytest.raises(TypeError, match="heat"):
        nano.ask(scene_file, "What?", heat=1)
    with pytest.raises(ValueError, match="dtype"):
        afnext.load("nano", dtype="int3")
    with pytest.raises(ValueError, match="device"):
        afnext.load("nano", device="abacus")


def test_longer_than_the_limit_is_refused_or_cut(nano: afnext.Assistant) -> None:
    noise = np.random.default_rng(0).standard_normal(3 * 16_000).astype(np.float32) * 0.01
    with pytest.raises(afnext.AudioError, match="truncate"):
        nano.ask(noise, "What?", max_seconds=2)
    reply = nano.ask(noise, "What?", max_seconds=2, truncate=True, max_tokens=2)
    assert reply.usage.audio_seconds == 2


@pytest.mark.sweep
def test_half_an_hour_is_heard(nano: afnext.Assistant) -> None:
    """The default limit, 60 windows and 45,000 audio tokens, goes through; a second more does not."""
    noise = np.random.default_rng(0).standard_normal(1801 * 16_000).astype(np.float32) * 0.01
    with pytest.raises(afnext.AudioError, match="truncate"):
        nano.ask(noise, "What?")
    assert nano.ask(noise[:-16_000], "What?", max_tokens=2).usage.audio_tokens == 45_000


def test_bfloat16_answers_too(scene_file: Path) -> None:
    model = afnext.load("nano", dtype="bfloat16")
    assert model.ask(scene_file, "What sounds do you hear, and when?").segments
