"""The audio encoder in the released geometry, bfloat16 and int8, beside transformers' on the same weights.

Eight of its 32 layers, with both convolutions; all layers are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AudioFlamingo3EncoderConfig
from transformers.models.audioflamingo3.modeling_audioflamingo3 import AudioFlamingo3Encoder

from afnext.audio import load
from afnext.audio.windows import WINDOW_FRAMES
from afnext.engine.packed import PackedEncoder, Packing
from afnext.model import AudioBatch, AudioLanguageModel

from .case import Case
from .models.released import AUDIO, TEXT, geometry, random_model

LAYERS = 8
ATTENTION = ("sdpa", "eager")
TARGETS = {30: 1.7, 5: 8.0}  # times that transformers should take, by seconds of audio
# Most that features may be off, as a share of transformers' in bfloat16.
TOLERANCES = {"bfloat16": 0.02, "int8": 0.03}


def transformers_encoder(net: AudioLanguageModel, attention: str) -> AudioFlamingo3Encoder:
    """transformers' encoder on the tensors of ``net``."""
    sizes: dict[str, Any] = {**net.config.audio.to_dict(), "attn_implementation": attention}
    dtype = net.audio_tower.layer_norm.weight.dtype
    config = AudioFlamingo3EncoderConfig(**sizes, dtype=dtype)
    with torch.device("meta"):
        encoder = AudioFlamingo3Encoder(config)
    encoder.load_state_dict(net.audio_tower.state_dict(), assign=True)
    return encoder.eval()


def padded(audio: AudioBatch) -> dict[str, Tensor]:
    """One window as transformers takes it: ``[1, 128, 3000]``, and which frames are audio."""
    features = audio.features.new_zeros(1, WINDOW_FRAMES, audio.features.shape[1])
    features[0, : len(audio.features)] = audio.features
    mask = torch.zeros(1, WINDOW_FRAMES, dtype=torch.long)
    mask[0, : audio.frames[0]] = 1
    return {"input_features": features.transpose(1, 2), "input_features_mask": mask}


def flops(net: AudioLanguageModel, positions: int) -> float:
    """Products of one window: convolutions, layers, attention."""
    audio, layers = net.config.audio, net.audio_tower.layers
    size = audio.hidden_size
    weights = sum(p.numel() for p in layers.parameters() if p.dim() == 2)
    convolutions = 3 * size * (2 * audio.num_mel_bins + size)
    attention = 4 * positions**2 * size * audio.num_hidden_layers
    return 2 * positions * (weights + convolutions) + attention


def cases() -> Iterator[Case]:
    """A full window and a short clip."""
    audio = replace(AUDIO, num_hidden_layers=LAYERS)
    text = replace(TEXT, num_hidden_layers=0, vocab_size=1024, intermediate_size=64)
    net = random_model(geometry(text, audio))
    peers = {f"transformers {a}": transformers_encoder(net, a) for a in ATTENTION}
    for format in ("bfloat16", "int8"):
        try:
            encoder = PackedEncoder(net, Packing({}), format)
        except ValueError as error:
            print(f" {format}: left out ({error})")
            continue
        for seconds in (30, 5):
            yield _window(net, encoder, peers, seconds, format)


def _window(
    net: AudioLanguageModel,
    encoder: PackedEncoder,
    peers: dict[str, AudioFlamingo3Encoder],
    seconds: int,
    format: str,
) -> Case:
    samples = np.random.default_rng(0).standard_normal(seconds * 16_000, np.float32) * 0.05
    batch = AudioBatch.collate([list(load(samples, sample_rate=16_000))]).to(dtype=torch.bfloat16)
    plan, theirs = batch.plans[0], padded(batch)

    def ours() -> Tensor:
        return encoder._encode(batch.features, plan)

    def peer(model: Any) -> Tensor:
        return model(**theirs).last_hidden_state[0, : batch.num_tokens]

    def check() -> None:
        features, expected = ours().float(), peer(peers["transformers sdpa"]).float()
        error = float((features - expected).norm() / expected.norm())
        if not error < TOLERANCES[format]:
            raise AssertionError(
                f"features are off by {error:.1%}, more than {TOLERANCES[format]:.1%}"
            )

    return Case(
        f"{LAYERS} of 32 layers, {seconds} s, {format}",
        label="afnext",
        ours=ours,
        peers={name: partial(peer, model) for name, model in peers.items()},
        flops=flops(net, len(plan.positions)),
        dtype=format,
        check=check,
        targets={"transformers sdpa": TARGETS[seconds]},
        context=torch.inference_mode,
        rounds=5,
        slow=format != "bfloat16",
    )
