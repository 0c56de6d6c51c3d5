"""The whole model against transformers on random checkpoints: logits and greedy tokens in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from afnext.audio.windows import AudioWindow
from afnext.model import AudioBatch, AudioLanguageModel

NEW_TOKENS = 64


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((got - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def compare(
    pair: Any, prompts: Sequence[list[int]], audio: Sequence[Sequence[AudioWindow]], tools: Any
) -> None:
    """Logits within 1e-4 and 64 greedy tokens identical, for one batch padded on the left."""
    their_features, left_pad = tools
    ids, mask = left_pad(prompts)
    inputs = their_features([w for windows in audio for w in windows])
    expected = pair.theirs(input_ids=ids, attention_mask=mask, **inputs).logits
    batch = AudioBatch.collate(audio)
    got = pair.ours(ids, batch, attention_mask=mask)
    valid = mask.bool()
    assert got.shape == expected.shape
    assert relative(got[valid], expected[valid]) < 1e-4
    generated = pair.theirs.generate(
        input_ids=ids,
        attention_mask=mask,
        **inputs,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )
    expected_tokens = generated[:, ids.shape[1] :]
    assert expected_tokens.shape[1] == NEW_TOKENS
    assert len(expected_tokens.unique()) > 8  # not a stuck loop that any model would repeat
    # Ours are the same if, after every prefix of theirs, the next one is our first choice too.
    everything, padding = generated[:, :-1], mask.new_ones(len(mask), NEW_TOKENS - 1)
    logits = pair.ours(everything, batch, attention_mask=torch.cat([mask, padding], dim=1))
    assert torch.equal(logits[:, ids.shape[1] - 1 :].argmax(-1), expected_tokens)


@pytest.fixture
def tools(their_features: Any, left_pad: Any) -> tuple[Any, Any]:
    return their_features, left_pad


Clip = Callable[..., list[AudioWindow]]


@pytest.mark.parametrize("seconds", [4.0, 30.0, pytest.param(95.0, marks=pytest.mark.slow)])
def test_one_clip(pair: Any, clip: Clip, prompt: Any, tools: Any, seconds: float) -> None:
    windows = clip(seconds)
    compare(pair, [prompt(windows)], [windows], tools)


def test_mixed_lengths(pair: Any, clip: Clip, prompt: Any, tools: Any) -> None:
    rows = [clip(2.03, 1), clip(31.5, 2), clip(7.777, 3)]
    prompts = [prompt(w, before=3 + i, after=4 + 5 * i) for i, w in enumerate(rows)]
    compare(pair, prompts, rows, tools)


def test_audio_in_the_second_turn(pair: Any, clip: Clip, prompt: Any, tools: Any) -> None:
    windows = clip(6.4, 4)
    compare(pair, [prompt(windows, before=60, after=12)], [windows], tools)


@torch.no_grad()
def test_greedy_loop(pair: Any, clip: Clip, prompt: Any, their_features: Any) -> None:
    """The same, decoded by hand one token at a time with everything computed anew."""
    windows = clip(1.0)
    ids = torch.tensor([prompt(windows)])
    expected = pair.theirs.generate(
        input_ids=ids,
        **their_features(windows),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )
    net, audio = pair.ours, AudioBatch.collate([windows])
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, net(ids, audio)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ids, expected)


@torch.no_grad()
def test_text_alone(pair: Any, left_pad: Any) -> None:
    ids, mask = left_pad([[1, 2, 3, 4, 5, 6], [7, 8, 9]])
    expected = pair.theirs(input_ids=ids, attention_mask=mask).logits
    got = pair.ours(ids, attention_mask=mask)
    assert relative(got[mask.bool()], expected[mask.bool()]) < 1e-4


@torch.no_grad()
def test_hidden_states(pair: Any, clip: Clip, prompt: Any, their_features: Any) -> None:
    windows = clip(3.0)
    ids = torch.tensor([prompt(windows)])
    expected = pair.theirs(input_ids=ids, output_hidden_states=True, **their_features(windows))
    got = pair.ours(ids, AudioBatch.collate([windows]), output_hidden_states=True)
    assert len(got.hidden_states) == len(expected.hidden_states) == 3
    for mine, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert relative(mine, theirs) < 1e-5
    assert relative(got.logits, expected.logits) < 1e-4


@torch.no_grad()
def test_linear_rope_scaling(make_theirs: Any, tmp_path: Any) -> None:
    """Position interpolation, which the training code of Audio Flamingo 3 knows."""
    import json

    theirs = make_theirs(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {
        "rope_type": "linear",
        "rope_theta": 1e4,
        "factor": 4.0,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = type(theirs).from_pretrained(tmp_path).eval()
    ids = torch.arange(250)[None]
    got = AudioLanguageModel.from_pretrained(tmp_path)(ids)
    assert relative(got, theirs(input_ids=ids).logits) < 1e-4
