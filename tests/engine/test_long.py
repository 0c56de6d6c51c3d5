"""Several recordings in one prompt, to 128K tokens: the engine against one plain forward pass in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

import afnext
from afnext.audio import WINDOW_SAMPLES, AudioWindow, load
from afnext.chat import Message, build_prompt
from afnext.engine import Engine, Generation, GenerationParams
from afnext.model import AudioBatch, AudioLanguageModel
from tests.engine.models import SOUND, small_model, window

pytestmark = pytest.mark.slow

CONTEXT = 131_072
TOP = 5
# Of natural log-probabilities: sums over 128K keys in another order, in float32, differ by some 1e-5.
TOLERANCE = 1e-3
NOISE = (
    np.random.default_rng(0).standard_normal(WINDOW_SAMPLES + 1000 * 200).astype(np.float32) * 0.1
)


def recording(number: int, samples: int, seed: int) -> list[AudioWindow]:
    """Windows of a recording; all differ, on the same memory."""
    windows = []
    for start in range(0, samples, WINDOW_SAMPLES):
        count = min(WINDOW_SAMPLES, samples - start)
        at = 1000 * (seed + start // WINDOW_SAMPLES)
        windows.append(AudioWindow(NOISE[at : at + count], start, count, number))
    return windows


def prompt(recordings: Sequence[Sequence[AudioWindow]], *question: int) -> list[int]:
    ids = [1, 2]
    for number, windows in enumerate(recordings):
        ids += [SOUND] * sum(w.num_tokens for w in windows) + [3 + number]
    return [*ids, *question]


@torch.no_grad()
def plain(net: AudioLanguageModel, ids: list[int], windows: Sequence[AudioWindow]) -> torch.Tensor:
    """Log-probabilities ``[S, vocab]`` of one forward pass over everything."""
    return net(torch.tensor([ids]), AudioBatch.collate([list(windows)]))[0].log_softmax(-1)


def difference(said: Generation, expected: torch.Tensor) -> float:
    """The largest, over the likeliest tokens of each step; ``expected [steps, vocab]``."""
    assert len(said.logprobs) == len(expected)
    return max(
        abs(logprob - float(row[token]))
        for step, row in zip(said.logprobs, expected, strict=True)
        for token, logprob in step.top
    )


def check(said: Generation, before: list[int], expected: torch.Tensor) -> None:
    """The answer behind ``before`` is what the forward over it says."""
    rows = expected[len(before) - 1 : len(before) - 1 + len(said.tokens)]
    assert difference(said, rows) < TOLERANCE
    assert said.tokens == rows.argmax(-1).tolist()


@pytest.mark.sweep  # a minute: 17 thousand million pairs of tokens, seen by both
def test_128k_tokens_of_several_recordings() -> None:
    """Half an hour twice and what still fits, beside a short prompt; then a second question about it.

    Read in 64 chunks, most of which cut a window; the second question finds all of it computed.
    """
    net = small_model(
        text={
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": CONTEXT,
        }
    )
    half_hour = 1800 * 16_000
    recordings = [
        recording(0, half_hour, 0),
        recording(1, half_hour, 60),
        recording(2, 61 * 16_000 + 77, 120),
        recording(3, 1560 * 16_000 + 5, 130),
    ]
    windows = list(chain(*recordings))
    engine = Engine(net, [], audio_cache_bytes=1 << 20)
    params = GenerationParams(max_tokens=3, logprobs=TOP)
    first = prompt(recordings, 11, 12)
    assert 128_000 < len(first) < CONTEXT - 20
    clip = window(2.0, 7, start=30.0)
    short = prompt([[clip]], 11)
    handles = [engine.submit(first, windows, params), engine.submit(short, [clip], params)]
    long_said, short_said = (handle.result() for handle in handles)
    second = [*first, *long_said.tokens, 13, 14]
    again = engine.submit(second, windows, params).result()
    assert again.cached_tokens == (len(first) + len(long_said.tokens) - 1) // 32 * 32
    everything = plain(net, [*second, *again.tokens], windows)
    check(long_said, first, everything)
    check(again, second, everything)
    check(short_said, short, plain(net, [*short, *short_said.tokens], [clip]))
    assert engine.stats().free_pages == engine.stats().pages


@pytest.mark.parametrize("limits", [{}, {"max_step_tokens": 300}, {"audio_cache_bytes": 0}])
def test_each_recording_has_its_own_times(net_of_4k: AudioLanguageModel, limits: dict) -> None:
    recordings = [recording(0, 61 * 16_000, 0), recording(1, 50 * 16_000, 10)]
    windows = list(chain(*recordings))
    ids = prompt(recordings, 11, 12)
    engine = Engine(net_of_4k, [], **limits)
    params = GenerationParams(max_tokens=3, logprobs=TOP)
    said = [engine.submit(ids, windows, params).result() for _ in range(2)]
    assert said[1].cached_tokens > said[0].cached_tokens == 0
    following = [*ids, *said[0].tokens]
    for one in said:
        check(one, ids, plain(net_of_4k, following, windows))
    # The second one's windows counted on from the first's are told apart: the check can fail.
    onward = [replace(w, start_sample=n * WINDOW_SAMPLES) for n, w in enumerate(windows)]
    rows = plain(net_of_4k, following, onward)[len(ids) - 1 : -1]
    assert difference(said[0], rows) > 10 * TOLERANCE


def test_ask_about_two_long_recordings() -> None:
    model = afnext.load("nano", dtype="float32")
    clips = [NOISE[: 33 * 16_000], NOISE[5 : 40 * 16_000]]
    reply = model.ask(clips, "Which one?", max_tokens=3, logprobs=TOP, temperature=0.0)
    message = Message("user", "Which one?", clips)
    loaded = [load(c, sample_rate=16_000, recording=n) for n, c in enumerate(clips)]
    built = build_prompt([message], loaded, model.tokenizer, model.template)
    starts = [w.start_sample for w in built.windows]
    assert starts == [0, WINDOW_SAMPLES, 0, WINDOW_SAMPLES]
    said = [step.token for step in reply.logprobs]
    expected = plain(model.net, [*built.ids, *said], built.windows)[len(built.ids) - 1 :]
    for step, row in zip(reply.logprobs, expected, strict=False):
        for token, logprob in step.top:
            assert abs(logprob - float(row[token])) < TOLERANCE


@pytest.fixture(scope="module")
def net_of_4k() -> AudioLanguageModel:
    return small_model(text={"max_position_embeddings": 4096})
