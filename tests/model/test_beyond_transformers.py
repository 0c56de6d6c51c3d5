"""What transformers 5.23 refuses or crashes on works here, and equals single runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from afnext.audio.windows import WINDOW_SAMPLES, AudioWindow
from afnext.model import AudioBatch, AudioLanguageModel

pytestmark = pytest.mark.slow

Clip = Callable[..., list[AudioWindow]]


def close(got: Tensor, expected: Tensor) -> None:
    """Equal up to the order of float32 sums: 2e-5 of the largest entry."""
    torch.testing.assert_close(got, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


def by_hand(
    net: AudioLanguageModel, ids: Tensor, recordings: Sequence[list[AudioWindow]]
) -> Tensor:
    """One row, each recording encoded alone and each span filled by a loop."""
    tokens = [net.encode(AudioBatch.collate([windows])) for windows in recordings]
    spare = iter(torch.cat(tokens)) if tokens else iter(())
    embeds = net.language_model.model.embed_tokens(ids)
    for i, token in enumerate(ids[0].tolist()):
        if token == net.config.audio_token_id:
            embeds[0, i] = next(spare)
    assert next(spare, None) is None
    return net(None, inputs_embeds=embeds)


@torch.no_grad()
@pytest.mark.parametrize("between", [0, 20], ids=["same turn", "two turns"])
def test_two_recordings(pair: Any, clip: Clip, prompt: Any, between: int) -> None:
    """The window index starts again with each recording, wherever its placeholders stand."""
    net = pair.ours
    first, second = clip(31.0, 1), clip(33.5, 2, recording=1)
    ids = prompt(first, after=between) + prompt(second, before=0 if between == 0 else 3)
    got = net(torch.tensor([ids]), AudioBatch.collate([[*first, *second]]))
    close(got, by_hand(net, torch.tensor([ids]), [first, second]))


@torch.no_grad()
def test_two_recordings_equal_transformers_model(
    flamingo: Any, clip: Clip, prompt: Any, their_features: Any
) -> None:
    """transformers' processor refuses two recordings, but its model computes them given their ids."""
    first, second = clip(31.0, 1), clip(5.0, 2, recording=1)
    ids = torch.tensor([prompt(first, second)])
    expected = flamingo.theirs(input_ids=ids, **their_features([*first, *second])).logits
    got = flamingo.ours(ids, AudioBatch.collate([[*first, *second]]))
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_only_and_audio_in_one_batch(pair: Any, clip: Clip, prompt: Any, side: str) -> None:
    net = pair.ours
    one, two = clip(3.3, 1), clip(31.0, 2)
    rows = [[], one, [], two, [*clip(2.0, 3), *clip(1.0, 4)]]
    prompts = [
        prompt(before=11), prompt(one), prompt(before=2, after=3), prompt(two),
        prompt(clip(2.0, 3), clip(1.0, 4)),
    ]  # fmt: skip
    width = max(map(len, prompts))
    ids, mask = torch.zeros(5, width, dtype=torch.int64), torch.zeros(5, width, dtype=torch.int64)
    for i, p in enumerate(prompts):
        span = slice(width - len(p), None) if side == "left" else slice(0, len(p))
        ids[i, span], mask[i, span] = torch.tensor(p), 1
    got = net(ids, AudioBatch.collate(rows), attention_mask=mask)
    for i, p in enumerate(prompts):
        alone = net(torch.tensor([p]), AudioBatch.collate([rows[i]]))
        close(got[i][mask[i].bool()], alone[0])
    assert not got[~mask.bool()].any()


@torch.no_grad()
@pytest.mark.parametrize(
    "extra",
    [0, 320, 321, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 160, 161, 480))],
)
def test_just_past_a_multiple_of_30_s(pair: Any, clip: Clip, prompt: Any, extra: int) -> None:
    """0 to 20 ms past the last full window add no token and change nothing; 21 ms add one."""
    net = pair.ours
    full = clip(30.0)
    windows = list(full)
    if extra:
        tail = np.random.default_rng(0).standard_normal(extra).astype(np.float32)
        windows.append(AudioWindow(tail, WINDOW_SAMPLES, extra))
    expected_tokens = 750 + (extra > 320)
    tokens = net.encode(AudioBatch.collate([windows]))
    assert len(tokens) == expected_tokens
    close(tokens[:750], net.encode(AudioBatch.collate([full])))
    got = net(torch.tensor([prompt(windows)]), AudioBatch.collate([windows]))
    close(got, by_hand(net, torch.tensor([prompt(windows)]), [windows]))


@torch.no_grad()
@pytest.mark.parametrize("samples", [0, 1, 160, 320])
def test_shorter_than_a_token(pair: Any, prompt: Any, samples: int) -> None:
    """A clip of at most 20 ms makes no token: the row runs as its text."""
    net = pair.ours
    windows = [AudioWindow(np.ones(samples, np.float32), 0, samples)]
    ids = torch.tensor([prompt(windows)])
    assert not (ids == net.config.audio_token_id).any()
    close(net(ids, AudioBatch.collate([windows])), net(ids))


def test_placeholders_must_match(flamingo: Any, clip: Clip, prompt: Any) -> None:
    net, windows = flamingo.ours, clip(2.0)
    ids = torch.tensor([prompt(windows)])
    audio = AudioBatch.collate([windows])
    # As many in all, but in the wrong rows: transformers would not notice.
    both = torch.stack([ids[0], torch.zeros_like(ids[0])])
    with pytest.raises(ValueError, match="row 0 has 50 <sound> placeholders"):
        net(both, AudioBatch.collate([[], windows]))
    with pytest.raises(ValueError, match="its audio makes 25 tokens"):
        net(ids, AudioBatch.collate([clip(1.0)]))
    with pytest.raises(ValueError, match="its audio makes 0 tokens"):
        net(ids)
    with pytest.raises(ValueError, match="rows"):
        net(ids.repeat(2, 1), audio)
    with pytest.raises(ValueError, match="input_ids"):
        net(None)
    with pytest.raises(ValueError, match="input_ids"):
        net(None, audio, inputs_embeds=torch.zeros(1, 4, 256))
    with pytest.raises(ValueError, match="attention_mask"):
        net(ids, audio, attention_mask=torch.ones(1, 3))
