"""Packed conversations are what each is alone; of a conversation the answers alone are learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from afnext.audio.windows import AudioWindow, cut_windows
from afnext.chat import ChatTemplate, Tokenizer
from afnext.errors import AfnextError
from afnext.hub import EMBEDDED
from afnext.model import AudioLanguageModel
from afnext.training.data.conversations import Conversation, conversation
from afnext.training.data.packing import NOT_LEARNT, Encoded, encode, hear, hidden_states, pack

pytestmark = pytest.mark.slow


def said(*values: str, **fields: object) -> Conversation:
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return conversation({"conversations": turns, **fields})


CONVERSATIONS = [
    said("<sound>\nWhen does the bell ring?", "At <t>1.2-2.3</t>.", sound="a.wav"),
    said("<sound>Is there a dog?", "No.", "Is there a cat?", "Yes.", sound="a.wav"),
    said("What is two and two?", "I cannot help with that."),
    said("<sound-1><sound-2>Which recording has a bell?", "The first.", sound=["a.wav", "b.wav"]),
    said("<sound>Describe the audio.", "A bell rings.", sound="b.wav"),
]


def tokens_of(windows: dict[str, list[AudioWindow]]) -> dict[str, int]:
    return {name: sum(w.num_tokens for w in ws) for name, ws in windows.items()}


@pytest.fixture(scope="module")
def windows() -> dict[str, list[AudioWindow]]:
    random = np.random.default_rng(0)
    lengths = {"a.wav": 31.0, "b.wav": 1.3}
    return {
        name: list(cut_windows([random.standard_normal(int(16000 * s)).astype(np.float32) * 0.1]))
        for name, s in lengths.items()
    }


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(EMBEDDED["nano"])


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.from_folder(EMBEDDED["nano"])


@pytest.fixture(scope="module")
def encoded(
    windows: dict[str, list[AudioWindow]], tokenizer: Tokenizer, template: ChatTemplate
) -> list[Encoded]:
    return [encode(c, tokens_of(windows), tokenizer, template) for c in CONVERSATIONS]


def test_answers_and_their_ends_alone_are_learnt(
    encoded: list[Encoded], tokenizer: Tokenizer
) -> None:
    for item, original in zip(encoded, CONVERSATIONS, strict=True):
        answers = [turn.text for turn in original.turns if turn.role == "assistant"]
        assert tokenizer.decode(item.ids[item.learnt].tolist(), skip_special=False) == "".join(
            f"{answer}<|im_end|>" for answer in answers
        )


def test_targets_are_what_follows_and_is_learnt(
    encoded: list[Encoded], windows: dict[str, list[AudioWindow]], tokenizer: Tokenizer
) -> None:
    batch = pack(encoded[:1], windows, tokenizer.audio_id)
    ids, learnt = encoded[0].ids, encoded[0].learnt
    assert batch.ids.tolist() == ids.tolist()
    for place, target in enumerate(batch.targets.tolist()):
        follows = place + 1 < len(ids) and learnt[place + 1]
        assert target == (ids[place + 1] if follows else NOT_LEARNT)


def test_what_begins_alike_is_shared(
    encoded: list[Encoded], windows: dict[str, list[AudioWindow]], tokenizer: Tokenizer
) -> None:
    assert tokenizer.audio_id is not None
    batch = pack(encoded, windows, tokenizer.audio_id)
    tokens = tokens_of(windows)
    assert batch.audio.num_tokens == sum(tokens.values())
    heard = [tokens["a.wav"], tokens["b.wav"], tokens["a.wav"] + tokens["b.wav"]]
    assert len(batch.heard) == sum(heard)
    assert len(batch.trunks) == 4
    assert len(batch.ids) < sum(len(item.ids) for item in encoded) - tokens["a.wav"]


def test_packed_is_what_each_is_alone(
    encoded: list[Encoded], windows: dict[str, list[AudioWindow]], tokenizer: Tokenizer
) -> None:
    assert tokenizer.audio_id is not None
    net = AudioLanguageModel.from_pretrained(EMBEDDED["nano"], dtype=torch.float32)
    results = []
    for groups in ([encoded], [[item] for item in encoded]):
        net.zero_grad(set_to_none=True)
        total = 0.0
        for group in groups:
            batch = pack(group, windows, tokenizer.audio_id)
            hidden = hidden_states(net, batch, hear(net, batch.audio)[1])
            learnt = batch.targets != NOT_LEARNT
            logits = net.language_model.lm_head(hidden[learnt])
            loss = F.cross_entropy(logits, batch.targets[learnt], reduction="sum")
            loss.backward()
            total += loss.item()
        results.append(
            (total, {n: p.grad for n, p in net.named_parameters() if p.grad is not None})
        )
    (packed, packed_grads), (alone, alone_grads) = results
    assert packed == pytest.approx(alone, rel=1e-5)
    assert packed_grads.keys() == alone_grads.keys()
    for name, grad in packed_grads.items():
        error = (grad - alone_grads[name]).norm() / alone_grads[name].norm().clamp_min(1e-6)
        assert error < 1e-4, f"{name}: {error:.2g}"


def test_a_sound_within_a_text_is_refused(
    windows: dict[str, list[AudioWindow]], tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    item = said("Listen: <sound>", "A bell.", sound="b.wav", id="seventeen")
    with pytest.raises(AfnextError, match="seventeen: a sound stands within"):
        encode(item, tokens_of(windows), tokenizer, template)
