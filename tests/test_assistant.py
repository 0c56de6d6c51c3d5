"""The Python face with the embedded model: ask, stream, options, several recordings, bad input."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import afnext
from afnext import assistant
from afnext.audio.recording import Recording
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
        (np.zeros(320, np.float32), r"^audio array: is too short to be heard \(20 ms, needs more"),
    ],
)
def test_bad_audio_is_one_clear_error(nano: afnext.Assistant, audio: object, said: str) -> None:
    with pytest.raises(afnext.AudioError, match=said):
        nano.ask(audio, "What is this?")


def test_an_answer_about_no_recording_is_refused(nano: afnext.Assistant) -> None:
    for ask in (
        lambda: nano.ask([], "What?"),
        lambda: nano.caption(()),
        lambda: nano.transcribe([]),
    ):
        with pytest.raises(afnext.ChatError, match=r"^audio: holds no recording"):
            ask()


@pytest.mark.parametrize("question", [None, 5, ["a"]])
def test_a_question_is_a_string(nano: afnext.Assistant, scene_file: Path, question: object) -> None:
    with pytest.raises(afnext.ChatError, match=r"^question: must be a string, got "):
        nano.ask(scene_file, question)


def test_bad_options_are_refused(nano: afnext.Assistant, scene_file: Path) -> None:
    with pytest.raises(ValueError, match="temperature"):
        nano.ask(scene_file, "What?", temperature=-1)
    with pytest.raises(TypeError, match="heat"):
        nano.ask(scene_file, "What?", heat=1)
    with pytest.raises(ValueError, match="dtype"):
        afnext.load("nano", dtype="int3")
    with pytest.raises(ValueError, match="device"):
        afnext.load("nano", device="abacus")
    with pytest.raises(ValueError, match=r"^disk_cache: .*\.wav is a file; give a folder$"):
        afnext.load("nano", disk_cache=scene_file)
    with pytest.raises(afnext.CheckpointError, match=r"^model: must be a name, .* got NoneType$"):
        afnext.load(None)


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


def test_replies_are_those_of_ask(nano: afnext.Assistant, scene_file: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(20_000).astype(np.float32) * 0.01
    talks = [
        afnext.Message("user", "What sounds do you hear, and when?", scene_file),
        "Hello?",
        [afnext.Message("user", "Describe this.", noise)],
        afnext.Message("user", "Describe this.", scene_file),
    ]
    options = {"max_tokens": 24, "stop": ["</t>"]}
    alone = [nano.reply(talk, **options) for talk in talks]
    together = nano.replies(talks, **options)
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.stopped for r in together] == [r.stopped for r in alone]
    assert [r.usage.completion_tokens for r in together] == [
        r.usage.completion_tokens for r in alone
    ]
    assert {"stop", "end"} <= {r.stopped for r in together}
    assert nano.replies([]) == []


def test_a_bad_recording_among_many_fails_alone(nano: afnext.Assistant, scene_file: Path) -> None:
    talks = [
        afnext.Message("user", "Describe this.", source)
        for source in (scene_file, b"no audio", scene_file, "/nonexistent.wav")
    ]
    found = dict(nano.each_reply(iter(talks), at_once=1, max_tokens=4))
    assert [type(found[i]) for i in range(4)] == [
        afnext.Reply, afnext.AudioError, afnext.Reply, afnext.AudioError
    ]  # fmt: skip
    with pytest.raises(afnext.AudioError, match="audio"):
        nano.replies(talks)
    stats = nano.engine.stats()
    assert (stats.free_pages, stats.running) == (stats.pages, 0)
    with pytest.raises(ValueError, match="at_once"):
        nano.each_reply(talks, at_once=0)


def test_conversations_are_taken_as_they_are_needed(nano: afnext.Assistant) -> None:
    taken = []

    def endless() -> Iterator[str]:
        for number in count():
            taken.append(number)
            yield "Hello?"

    replies = nano.each_reply(endless(), at_once=3, max_tokens=2)
    next(replies)
    assert len(taken) == 3
    replies.close()
    assert nano.engine.stats().running == 0


def test_steps_are_made_before_all_recordings_are_decoded(nano: afnext.Assistant) -> None:
    steps, before = [], nano.engine.stats().steps

    def talks() -> Iterator[str]:
        for _ in range(12):
            steps.append(nano.engine.stats().steps - before)
            yield "Hello?"

    assert len(dict(nano.each_reply(talks(), max_tokens=20))) == 12
    assert steps[:4] == [0] * 4
    assert steps[4] > 0
    assert steps[8] > steps[4]


def test_limits_of_the_engine_are_options_of_load(tmp_path: Path) -> None:
    model = afnext.load(
        "nano", max_context=640, max_running=2, max_step_tokens=16, audio_cache_bytes=0,
        disk_cache=tmp_path, disk_cache_bytes=1000,
    )  # fmt: skip
    assert model.engine.max_context == 640
    assert model.engine.max_running == 2
    assert model.engine.audio_cache.max_bytes == 0
    assert model.engine.disk_cache is not None
    assert model.engine.disk_cache.max_bytes == 1000
    model.reply("word " * 100, max_tokens=1)
    assert model.engine.stats().steps >= 100 / 16
    with pytest.raises(ValueError, match="max_running"):
        afnext.load("nano", max_running=0)
    with pytest.raises(ValueError, match="disk_cache_bytes: goes with disk_cache"):
        afnext.load("nano", disk_cache_bytes=1000)
    for wrong in (-1, "4G", True):
        with pytest.raises(ValueError, match="disk_cache_bytes: must be a whole number from 0"):
            afnext.load("nano", disk_cache=tmp_path / "more", disk_cache_bytes=wrong)


def test_a_timeout_counts_the_reading_of_recordings(
    nano: afnext.Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*arguments: Any, **options: Any) -> Recording:
        time.sleep(0.3)
        return Recording(*arguments, **options)

    monkeypatch.setattr(assistant, "Recording", slowly)
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    late = nano.ask(noise, "What?", timeout=0.25)
    assert (late.text, late.stopped) == ("", "timeout")
    assert nano.ask(noise, "What?", timeout=60.0, max_tokens=2).stopped != "timeout"


def test_tasks_with_slow_sources_hold_up_nobody(
    nano: afnext.Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: they take none of asyncio's threads."""
    go = threading.Event()

    def slowly(*arguments: Any, **options: Any) -> Recording:
        assert go.wait(30)
        return Recording(*arguments, **options)

    monkeypatch.setattr(assistant, "Recording", slowly)
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1

    async def ask(*audio: np.ndarray) -> int:
        message = afnext.Message("user", "What?", list(audio))
        return len([piece async for piece in nano.astream([message], max_tokens=2)])

    async def everybody() -> None:
        waiting = [asyncio.create_task(ask(noise)) for _ in range(40)]
        assert await asyncio.wait_for(ask(), 20)
        assert not any(task.done() for task in waiting)
        go.set()
        assert all(await asyncio.gather(*waiting))

    asyncio.run(everybody())


def test_threads_may_ask_at_once(nano: afnext.Assistant, scene_file: Path) -> None:
    questions = ["What sounds do you hear, and when?", "Describe this.", "How many are there?"] * 2
    alone = [nano.ask(scene_file, q, max_tokens=24).text for q in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        asked = pool.map(lambda q: nano.ask(scene_file, q, max_tokens=24).text, questions)
        assert list(asked) == alone


def test_async_stream_adds_up_to_the_reply(nano: afnext.Assistant, scene_file: Path) -> None:
    message = afnext.Message("user", "What sounds do you hear, and when?", scene_file)

    async def read() -> list[afnext.Piece]:
        return [piece async for piece in nano.astream(message)]

    pieces = asyncio.run(read())
    assert pieces[-1].reply is not None
    assert "".join(p.text for p in pieces) == pieces[-1].reply.text == nano.reply(message).text

    async def refused() -> None:
        async for _ in nano.astream(message, temperature=-1):
            pass

    with pytest.raises(ValueError, match="temperature"):
        asyncio.run(refused())


def test_several_samples_and_logprobs(nano: afnext.Assistant, scene_file: Path) -> None:
    reply = nano.ask(
        scene_file, "Describe this.", n=3, temperature=3.0, seed=1, max_tokens=20, logprobs=2
    )
    assert len(reply.others) == 2
    assert len({reply.text, *(r.text for r in reply.others)}) > 1
    assert len(reply.logprobs) == reply.usage.completion_tokens
    again = nano.ask(scene_file, "Describe this.", temperature=3.0, seed=2, max_tokens=20)
    assert again.text == reply.others[0].text
    json.dumps(reply.to_dict())


def test_a_second_question_finds_the_recording_read(
    nano: afnext.Assistant, scene_file: Path
) -> None:
    nano.engine.clear_caches()
    first = nano.ask(scene_file, "What sounds do you hear, and when?", max_tokens=2)
    second = nano.ask(scene_file, "Describe this.", max_tokens=2)
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens >= 192  # of 200 tokens of audio
    assert second.timings.encode == 0


def test_a_stream_that_is_closed_frees_its_pages(nano: afnext.Assistant, scene_file: Path) -> None:
    pieces = nano.stream(afnext.Message("user", "Describe this.", scene_file))
    next(pieces)
    pieces.close()
    never_begun = nano.stream("Hello?")
    del never_begun
    stats = nano.engine.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.pages)


def test_one_conversation_is_not_taken_for_several(nano: afnext.Assistant) -> None:
    for one in ("Hi!", afnext.Message("user", "Hi!"), {"role": "user", "content": "Hi!"}):
        with pytest.raises(TypeError, match="conversations: must be a list of them, got one"):
            nano.replies(one)  # type: ignore[arg-type]
    found = dict(nano.each_reply(["Hi!", 5], max_tokens=2))  # type: ignore[list-item]
    assert isinstance(found[0], afnext.Reply)
    assert isinstance(found[1], afnext.ChatError)


def test_what_is_refused_leaves_no_file_open(nano: afnext.Assistant, tmp_path: Path) -> None:
    """However long whoever asked keeps the error."""
    import soundfile

    soundfile.write(tmp_path / "long.wav", np.full(16_000 * 150, 0.01, np.float32), 16_000)
    before = set(Path("/proc/self/fd").iterdir())
    kept = dict(
        nano.each_reply(
            [afnext.Message("user", "x " * 70_000, tmp_path / "long.wav") for _ in range(5)]
            + [afnext.Message("user", "Hi", [tmp_path / "long.wav", tmp_path / "none.wav"])]
        )
    )
    assert [type(kept[i]).__name__ for i in range(6)] == ["ChatError"] * 5 + ["AudioError"]
    left = {path.resolve().name for path in set(Path("/proc/self/fd").iterdir()) - before}
    assert "long.wav" not in left


def test_whose_limit_a_prompt_is_beyond_is_said() -> None:
    samples = np.full(16_000 * 120, 0.01, np.float32)
    small = afnext.load("nano", cache_bytes=600_000)
    with pytest.raises(
        afnext.ChatError, match=r"but the cache \(cache_bytes, kv_cache_dtype\) has room"
    ):
        small.caption(samples)
