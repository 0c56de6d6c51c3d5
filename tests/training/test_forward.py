"""The training forward equals the model's own: packed conversations see exactly their audio and turns."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from afnext.audio.windows import WINDOW_SAMPLES, AudioWindow
from afnext.model import AudioBatch, AudioLanguageModel, ModelConfig
from afnext.training import forward
from afnext.training.config import ModelShape
from afnext.training.data import Batch, Vocabulary, assemble, count_tokens, features, pack
from afnext.training.export import model_config
from afnext.training.initialise import initialise
from afnext.training.synthesis import ClipSet
from afnext.training.tasks import Exchange

SHAPE = ModelShape(
    audio_width=64, audio_layers=2, audio_heads=2, audio_ffn=96,
    width=64, layers=3, heads=4, kv_heads=2, ffn=96,
)  # fmt: skip


@pytest.fixture(scope="module")
def net(vocab: Vocabulary) -> AudioLanguageModel:
    net = AudioLanguageModel(ModelConfig.from_dict(model_config(SHAPE, vocab.tokenizer)))
    initialise(net, vocab, SHAPE.heads, SHAPE.kv_heads, 0)
    with torch.no_grad():  # larger weights, so that an error anywhere moves the logits
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(2)
    return net


def _windows(samples: np.ndarray) -> list[AudioWindow]:
    return [
        AudioWindow(s := samples[i : i + WINDOW_SAMPLES].astype(np.float32) / 32768, i, len(s))
        for i in range(0, len(samples), WINDOW_SAMPLES)
    ]


def _alone(net: AudioLanguageModel, vocab: Vocabulary, samples: np.ndarray, text: list[int]):
    """Logits of one conversation through the model's public forward."""
    sound = list(vocab.encode("<sound>")) * count_tokens(len(samples))
    ids = torch.tensor([[*vocab.prefix, *sound, *text]])
    with torch.no_grad():
        return net(ids, AudioBatch.collate([_windows(samples)]))[0, -len(text) :]


# float32 sums in another order, relative to logits of about 1
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


def test_packed_rows_give_the_logits_of_single_conversations(
    net: AudioLanguageModel, vocab: Vocabulary, clips: list[ClipSet]
) -> None:
    batch = assemble(clips[1], [0, 2], 5, vocab, random.Random(1), power=0.3, follow=0.4)
    text = batch.text
    with torch.no_grad():
        packed = forward.answer_logits(net, forward.adapt(net, forward.encode(net, batch)), batch)
    assert len(packed) == (text.targets >= 0).sum() > 20
    at, turns = 0, 0
    for row, clip in enumerate((0, 2)):
        for segment in range(1, len(text.tasks[row]) + 1):
            mask = text.segments[row] == segment
            ids, targets = text.ids[row][mask].tolist(), text.targets[row][mask]
            turns += ids.count(vocab.tokenizer.token_to_id("<|im_start|>")) > 1
            wanted = _alone(net, vocab, clips[1].samples[clip], ids)[targets >= 0]
            torch.testing.assert_close(packed[at : at + len(wanted)], wanted, **CLOSE)
            at += len(wanted)
    assert turns  # some conversations had a second turn


def test_two_windows_are_joined(net: AudioLanguageModel, vocab: Vocabulary) -> None:
    samples = (np.random.default_rng(0).standard_normal((1, 33 * 16_000)) * 3000).astype(np.int16)
    tokens = count_tokens(samples.shape[1])
    rows = [[Exchange("list", "What?", "Nothing.")]]
    text = pack(rows, len(vocab.prefix) + tokens, vocab, random.Random(0))
    batch = Batch(33.0, features(samples), [()], text, torch.tensor(vocab.prefix), tokens)
    with torch.no_grad():
        packed = forward.answer_logits(net, forward.adapt(net, forward.encode(net, batch)), batch)
    wanted = _alone(net, vocab, samples[0], text.ids[0].tolist())[text.targets[0] >= 0]
    torch.testing.assert_close(packed, wanted, **CLOSE)


def test_targets_are_the_answers_and_their_end(vocab: Vocabulary) -> None:
    exchanges = [
        Exchange("when", "When?", "At <t>0.1-0.4</t>."),
        Exchange("first", "First?", "bell."),
    ]
    packed = pack([exchanges], 10, vocab, random.Random(0), power=1.0)
    learnt = packed.targets[0] >= 0
    text = vocab.tokenizer.decode(packed.targets[0][learnt].tolist(), skip_special_tokens=False)
    assert text == "At <t>0.1-0.4</t>.<|im_end|>bell.<|im_end|>"
    assert (packed.ids[0].roll(-1)[learnt] == packed.targets[0][learnt]).all()
    first = packed.positions[0][packed.segments[0] == 2][0]
    assert first == packed.positions[0][0] == 10
    weights = packed.weights[0][learnt]
    assert weights.sum() == pytest.approx(2)  # power 1: every answer weighs the same
