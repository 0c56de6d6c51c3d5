"""Files that are decoded while they are encoded and read: answers, errors, and who gives up."""

from __future__ import annotations

import gc
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

import afnext
from afnext.audio import load
from afnext.engine.pace import Pace

pytestmark = pytest.mark.slow

SECONDS, RATE = 100, 22_050
QUESTION = "What happens in this recording?"
PATIENCE = 30.0


@pytest.fixture(scope="module")
def nano() -> afnext.Assistant:
    return afnext.load("nano", dtype="float32")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.flac"
    samples = np.random.default_rng(0).standard_normal((SECONDS * RATE, 2)) * 0.1
    soundfile.write(path, samples, RATE)
    return path


@pytest.fixture(scope="module")
def broken(file: Path) -> Path:
    path = file.with_name("broken.flac")
    data = file.read_bytes()
    path.write_bytes(data[: len(data) * 8 // 10])
    return path


@pytest.fixture
def one_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow moment makes later steps smaller, whose sums round otherwise."""
    monkeypatch.setattr(Pace, "took", lambda *_: None)


def whole(file: Path) -> np.ndarray:
    """Its samples as an array, which is taken as a whole."""
    return np.concatenate([w.samples for w in load(file)])


def idle(model: afnext.Assistant) -> bool:
    stats = model.engine.stats()
    return (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.pages)


@pytest.mark.usefixtures("one_pace")
def test_the_answer_is_that_about_its_samples(nano: afnext.Assistant, file: Path) -> None:
    options = {"max_tokens": 8, "logprobs": 4, "temperature": 0.0}
    nano.engine.clear_caches()
    ours = nano.ask(file, QUESTION, **options)
    nano.engine.clear_caches()
    theirs = nano.ask(whole(file), QUESTION, **options)
    assert (ours.text, ours.logprobs, ours.usage) == (theirs.text, theirs.logprobs, theirs.usage)
    assert ours.usage.audio_seconds == SECONDS
    assert ours.timings.decode_audio > 0
    again = nano.ask(file, "Is there a siren?", max_tokens=1)
    assert again.usage.cached_tokens > 25 * SECONDS - 64
    assert again.timings.encode == 0


@pytest.mark.usefixtures("one_pace")
def test_several_files(nano: afnext.Assistant, file: Path, scene_file: Path) -> None:
    sources = [file, scene_file, file]
    ours = nano.ask(sources, QUESTION, max_tokens=4, logprobs=2)
    assert ours.usage.audio_seconds == 2 * SECONDS + 8
    nano.engine.clear_caches()
    arrays = nano.ask([whole(s) for s in sources], QUESTION, max_tokens=4, logprobs=2)
    assert ours.logprobs == arrays.logprobs


def test_damage_is_told_as_when_it_is_loaded(
    nano: afnext.Assistant, file: Path, broken: Path
) -> None:
    with pytest.raises(afnext.AudioError) as expected:
        load(broken)
    with pytest.raises(afnext.AudioError) as said:
        nano.ask(broken, QUESTION)
    assert str(said.value) == str(expected.value)
    assert idle(nano)
    with pytest.warns(UserWarning, match="cut short"):
        windows = load(broken, partial=True)
    with pytest.warns(UserWarning, match="cut short"):
        reply = nano.ask(broken, QUESTION, partial=True, max_tokens=2)
    assert reply.usage.audio_seconds == round(sum(w.valid_samples for w in windows) / 16_000, 3)
    talks = [afnext.Message("user", QUESTION, source) for source in (broken, file)]
    answers = dict(nano.each_reply(talks, max_tokens=2))
    assert str(answers[0]) == str(expected.value)
    assert isinstance(answers[1], afnext.Reply)


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_who_stops_reading_stops_the_decoder(
    nano: afnext.Assistant, tmp_path: Path, file: Path, how: str
) -> None:
    path = tmp_path / "own.flac"
    path.write_bytes(file.read_bytes())

    def held() -> bool:
        found = False
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found |= link.readlink() == path
        return found

    pieces = nano.stream(afnext.Message("user", QUESTION, path))
    assert held()
    if how == "closed":
        next(pieces)
        pieces.close()
    del pieces
    gc.collect()
    deadline = time.monotonic() + PATIENCE
    while held() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not held()
    assert idle(nano)


def test_the_context_is_too_short_for_it(file: Path) -> None:
    model = afnext.load("nano", cache_bytes=10 << 20)
    limit = model.engine.max_context
    assert limit > 1500
    seconds = limit // 25 + 10
    with soundfile.SoundFile(file.with_name("longer.flac"), "w", 16_000, 1) as longer:
        for _ in range(seconds):
            longer.write(np.zeros(16_000, np.float32))
    for partial in (False, True):  # known by the header, or not before it is read
        with pytest.raises(afnext.ChatError, match=f"has room for {limit - 1:,}"):
            model.ask(file.with_name("longer.flac"), QUESTION, partial=partial)
    assert idle(model)
