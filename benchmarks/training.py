"""A training step (forward, loss, backward) in nano's geometry, beside transformers' classes on one batch.

The same conversations, the same loss, bfloat16 autocast on float32 weights. transformers takes each
conversation as a row: windows padded to 30 s, texts to the longest, a recording once for each question about
it. The second case asks one question about each recording: what is left then is padding and kernels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import MusicFlamingoForConditionalGeneration

from afnext.audio.windows import AudioWindow, cut_windows
from afnext.chat import ChatTemplate, Tokenizer
from afnext.hub import EMBEDDED
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.training.data.conversations import Conversation, Sound, Turn
from afnext.training.data.packing import NOT_LEARNT, Encoded, encode, hear, hidden_states, pack
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.dataset import SceneSet
from afnext.training.tasks import about

from .case import Case
from .encoder import padded

RECORDINGS, LONGEST = 4, 10.0
IGNORED = -100  # transformers' mark of what is not learnt
TOLERANCE = 0.01
"""Most that the loss may be off, as a share: both round to bfloat16, at different places."""


def cases() -> Iterator[Case]:
    """Six questions about each recording, and one."""
    folder = EMBEDDED["nano"]
    net = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32).train()
    theirs = MusicFlamingoForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    for questions in (6, 1):
        yield _step(net, theirs, questions)


def _step(net: AudioLanguageModel, theirs: Any, questions: int) -> Case:
    folder = EMBEDDED["nano"]
    tokenizer, template = Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder)
    windows, conversations = _conversations(questions)
    lengths = {path: sum(w.num_tokens for w in found) for path, found in windows.items()}
    encoded = [encode(c, lengths, tokenizer, template) for c in conversations]
    batch = pack(encoded, windows, tokenizer.audio_id)
    rows = _rows(encoded, windows, tokenizer)
    seconds = sum(w.valid_samples for found in windows.values() for w in found) / 16_000

    def ours() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = hidden_states(net, batch, hear(net, batch.audio)[1])
            learnt = batch.targets != NOT_LEARNT
            logits = net.language_model.lm_head(hidden[learnt])
            loss = F.cross_entropy(logits.float(), batch.targets[learnt])
        return _backward(net, loss)

    def peer() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = theirs(**rows).loss
        return _backward(theirs, loss)

    def check() -> None:
        got, wanted = ours(), peer()
        if abs(got - wanted) > TOLERANCE * wanted:
            raise AssertionError(f"the loss is {got:.4f}, transformers' {wanted:.4f}")

    return Case(
        f"{RECORDINGS} recordings, {seconds:.0f} s, {len(encoded)} conversations, bfloat16 autocast",
        label="afnext",
        ours=ours,
        peers={"transformers sdpa": peer},
        dtype="bfloat16",
        check=check,
        rounds=5,
        slow=questions > 1,
    )


def _backward(model: torch.nn.Module, loss: Tensor) -> float:
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return float(loss.detach())


def _conversations(
    questions: int,
) -> tuple[dict[str, list[AudioWindow]], list[Conversation]]:
    """Scenes of sounds, which need no voices and no instruments, and what is asked about them."""
    scenes, rng = SceneSet("sounds", RECORDINGS, 3.0, LONGEST), random.Random(0)
    windows, conversations = {}, []
    for index in range(RECORDINGS):
        scene, seconds = scenes.scene(7, index, Banks(Path()))
        path = f"{index}.wav"
        windows[path] = list(cut_windows([scene.samples.astype(np.float32)]))
        for _ in range(questions):
            exchange = about(scene, rng)
            turns = (
                Turn("user", (Sound(path), exchange.question)),
                Turn("assistant", (exchange.answer,)),
            )
            conversations.append(Conversation(path, turns, seconds))
    return windows, conversations


def _rows(
    encoded: Sequence[Encoded], windows: dict[str, list[AudioWindow]], tokenizer: Tokenizer
) -> dict[str, Tensor]:
    """The same conversations as transformers takes them."""
    longest = max(len(item.ids) for item in encoded)
    shape = (len(encoded), longest)
    ids = torch.full(shape, tokenizer.pad_id or 0)
    labels, mask = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.long)
    features = []
    for row, item in enumerate(encoded):
        own = torch.from_numpy(item.ids).long()
        ids[row, : len(own)], mask[row, : len(own)] = own, 1
        labels[row, : len(own)] = torch.where(torch.from_numpy(item.learnt), own, IGNORED)
        features.append(padded(AudioBatch.collate([windows[item.sounds[0]]])))
    stacked = {name: torch.cat([f[name] for f in features]) for name in features[0]}
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **stacked}
