"""How many operations a step takes by the model's geometry, and how many the machine could do.

A multiplication and an addition are two. Counted are products of matrices and attention, as the usual share
of the peak (MFU) has them: forward, the gradients of what a layer was given where anything below it is
trained, and those of its weights where they are. What is computed a second time to save memory does not
count, nor does what is kept from being computed by shared beginnings.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

import torch

from afnext.model import ModelConfig
from afnext.training.data.packing import NOT_LEARNT, PackedBatch

PASSES = 5


@dataclass(frozen=True)
class Flops:
    """Of a forward: in the encoder, the adaptor, the decoder's layers and its head."""

    encoder: float
    adaptor: float
    decoder: float
    head: float

    def step(self, trained: Collection[str]) -> float:
        """Of a whole step that trains parameters of these names."""
        parts = (("audio_tower", self.encoder), ("multi_modal_projector", self.adaptor),
                 ("language_model", self.decoder + self.head))  # fmt: skip
        total, below = 0.0, False
        for module, forward in parts:
            here = any(f".{module}." in f".{name}" for name in trained)
            total += forward * (1 + (below or here) + here)
            below = below or here
        return total


def forward_flops(config: ModelConfig, batch: PackedBatch, answers: bool = True) -> Flops:
    """Of one batch; without ``answers`` the decoder rests."""
    encoder, adaptor = _encoder(config, batch), _adaptor(config, batch)
    if not answers:
        return Flops(encoder, adaptor, 0.0, 0.0)
    learnt = int((batch.targets != NOT_LEARNT).sum())
    head = 2.0 * config.text.hidden_size * config.text.vocab_size * learnt
    return Flops(encoder, adaptor, _decoder(config, batch), head)


def _encoder(config: ModelConfig, batch: PackedBatch) -> float:
    audio = config.audio
    width = audio.hidden_size
    lengths = [length for plan in batch.audio.plans for length in plan.lengths]
    positions = sum(lengths)
    # Three frames go into each output; the first convolution has two outputs for a position.
    convolutions = 2.0 * 3 * width * (2 * audio.num_mel_bins + width) * positions
    linear = 2.0 * (4 * width**2 + 2 * width * audio.intermediate_size) * positions
    attention = 4.0 * width * sum(length**2 for length in lengths)
    return convolutions + audio.num_hidden_layers * (linear + attention)


def _adaptor(config: ModelConfig, batch: PackedBatch) -> float:
    text = config.text.hidden_size
    return 2.0 * text * (config.audio.hidden_size + text) * batch.audio.num_tokens


def _decoder(config: ModelConfig, batch: PackedBatch) -> float:
    text = config.text
    heads = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    weights = text.hidden_size * (2 * heads + 2 * keys + 3 * text.intermediate_size)
    pairs = 0.0  # of a token and one that it sees
    for trunk, branches in zip(batch.trunks, batch.branches, strict=True):
        pairs += trunk**2 / 2 + sum(n * trunk + n**2 / 2 for n in branches)
    linear = 2.0 * weights * len(batch.ids)
    return text.num_hidden_layers * (linear + 4.0 * heads * pairs)


@cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of torch's own product of square matrices on this device: the best of some."""
    size = 4096 if device.type == "cuda" else 1024
    draw = torch.Generator(device)  # of its own: what a resumed run draws must not depend on it
    a, b = (torch.randn(size, size, device=device, generator=draw).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(PASSES):
        _wait(device)
        began = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
