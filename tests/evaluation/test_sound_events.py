"""The evaluation: batched answers equal single ones, and the truth scores one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from afnext.audio.windows import AudioWindow
from afnext.evaluation.generate import Listener
from afnext.evaluation.sound_events import questions_about
from afnext.model import AudioBatch, AudioLanguageModel, ModelConfig
from afnext.training.config import ModelShape
from afnext.training.data import Vocabulary, count_tokens
from afnext.training.export import model_config
from afnext.training.initialise import initialise
from afnext.training.synthesis import Event
from afnext.training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary(train_tokenizer(700, 300))


def test_batched_answers_are_those_of_the_model_alone(vocab: Vocabulary) -> None:
    """Token by token through the public forward, for questions of different lengths."""
    shape = ModelShape(32, 1, 2, 48, 32, 3, 2, 1, 48)
    net = AudioLanguageModel(ModelConfig.from_dict(model_config(shape, vocab.tokenizer)))
    initialise(net, vocab, shape.heads, shape.kv_heads, 0)
    with torch.no_grad():
        net.language_model.model.embed_tokens.weight.mul_(20)
    samples = (np.random.default_rng(0).standard_normal((2, 40_000)) * 3000).astype(np.int16)
    questions = ["When?", "What do you hear, and when does it happen?"]
    answers = Listener(net, vocab, samples).ask(questions, longest=6)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        window = AudioWindow(samples[row].astype(np.float32) / 32768, 0, samples.shape[1])
        sound = list(vocab.encode("<sound>")) * count_tokens(samples.shape[1])
        ids = [*vocab.prefix, *sound, *vocab.close, *vocab.question(question)]
        said: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                logits = net(torch.tensor([ids + said]), AudioBatch.collate([[window]]))
            said.append(int(logits[0, -1].argmax()))
        assert answer == vocab.tokenizer.decode(said, skip_special_tokens=False)


def test_true_answers_are_right_and_others_wrong() -> None:
    events = [Event("bell", 1.2, 2.5), Event("siren", 3.0, 4.1)]
    asked = {q.kind: q for q in questions_about(events, random.Random(0))}
    assert asked["presence, absent"].right("No.")
    assert not asked["presence, absent"].right("Yes.")
    assert asked["presence, present"].right("Yes.")
    assert asked["count"].right("bell, siren: 2.")
    assert not asked["count"].right("bell: 1.")
    assert asked["first"].right("bell.")
    assert not asked["first"].right("siren.")
    whens = [
        q
        for seed in range(20)
        for q in questions_about(events, random.Random(seed))
        if q.kind == "when" and "bell" in q.text.lower()
    ]
    bell = [q for q in whens if q.right("At <t>1.2-2.5</t>.")]
    assert bell
    assert bell[0].right("At <t>1.4-2.4</t>.")
    assert not bell[0].right("At <t>1.6-2.5</t>.")
    assert not bell[0].right("There is no bell.")
