"""A prompt of recordings that are still being read adds up to the one of recordings that were read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import afnext
from afnext.audio import load
from afnext.audio.recording import AHEAD, Recording
from afnext.chat import build_prompt
from afnext.chat.growing import growing
from afnext.errors import ChatError

SECONDS = (5.0, 100.0, 61.0, 60.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("files")
    found = []
    for seconds in SECONDS:
        samples = rng.standard_normal(int(seconds * 16_000)).astype(np.float32) * 0.1
        found.append(folder / f"{seconds:g}.wav")
        soundfile.write(found[-1], samples, 16_000)
    return found


@pytest.fixture(scope="module")
def nano() -> afnext.Assistant:
    return afnext.load("nano")


@pytest.mark.parametrize("order", [[0], [1], [3], [0, 1, 2, 3], [1, 0, 2], [2, 1]])
def test_it_adds_up(nano: afnext.Assistant, files: list[Path], order: list[int]) -> None:
    messages = [
        afnext.Message("user", "Which one?", [files[order[0]]]),
        afnext.Message("assistant", "This."),
        afnext.Message("user", "And of these?", [files[i] for i in order[1:]]),
    ]
    sources = [source for m in messages for source in m.audio]
    read = [load(source, recording=n) for n, source in enumerate(sources)]
    expected = build_prompt(messages, read, nano.tokenizer, nano.template)
    recordings = [Recording(source, recording=n) for n, source in enumerate(sources)]
    first = [r.first for r in recordings]
    known = growing(build_prompt(messages, first, nano.tokenizer, nano.template), recordings)
    assert known.expected == len(expected.ids)
    assert (known.more is None) == all(SECONDS[i] <= 30 * (AHEAD - 1) for i in order)
    ids, windows, placeholder = known.ids, known.windows, nano.tokenizer.audio_id
    for more, heard in known.more or ():
        assert more.count(placeholder) == sum(w.num_tokens for w in heard)
        ids, windows = ids + more, windows + heard
    assert ids == expected.ids
    assert [(w.recording, w.start_sample) for w in windows] == [
        (w.recording, w.start_sample) for w in expected.windows
    ]
    for ours, theirs in zip(windows, expected.windows, strict=True):
        assert np.array_equal(ours.samples, theirs.samples)
    assert [r.seconds for r in recordings] == [SECONDS[i] for i in order]


def test_one_that_is_too_long_is_refused_by_its_header_or_when_it_shows(
    nano: afnext.Assistant, files: list[Path]
) -> None:
    message = afnext.Message("user", "What?", [files[1]])

    def cut(partial: bool, limit: int) -> list[int]:
        recording = Recording(files[1], partial=partial)
        built = build_prompt([message], [recording.first], nano.tokenizer, nano.template)
        known = growing(built, [recording], limit)
        ids = list(known.ids)
        for more, _ in known.more or ():
            ids += more
        return ids

    length = len(cut(False, 10_000))
    assert length == len(cut(False, length)) == len(cut(True, length))
    # A second less than its header says; where it may be damaged that is no promise, and it is read.
    for partial, found in ((False, "2,475"), (True, "2,500")):
        with pytest.raises(ChatError, match=rf"{found} of them audio.*takes 2,400"):
            cut(partial, 2400)
        with pytest.raises(ChatError, match=f"takes {length - 1:,}"):
            cut(partial, length - 1)
