"""Random weights in the geometry of the released AF-Next, whole or a few layers of it."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from afnext.model import AudioLanguageModel, ModelConfig
from afnext.model.config import AudioConfig, TextConfig

TEXT = TextConfig(
    vocab_size=151_672,
    hidden_size=3584,
    intermediate_size=18_944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    head_dim=128,
    rope_theta=15.3e6,
    max_position_embeddings=131_072,
)
AUDIO = AudioConfig()
NO_AUDIO = AudioConfig(
    hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64
)
"""An encoder of next to no size, for slices of the decoder."""


def geometry(text: TextConfig = TEXT, audio: AudioConfig = AUDIO) -> ModelConfig:
    """A model of these parts; the ids of its audio tokens are the last of a small vocabulary."""
    last = min(text.vocab_size, 1024)
    return ModelConfig(
        text=text,
        audio=audio,
        audio_token_id=last - 3,
        audio_bos_token_id=last - 2,
        audio_eos_token_id=last - 1,
    )


def random_model(
    config: ModelConfig,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AudioLanguageModel:
    """A model with random weights, never held in another dtype.

    One layer is drawn, and the others are copies of it: they lie elsewhere in memory, which is what
    speed depends on, and are made in seconds.
    """
    with torch.device("meta"):
        net = AudioLanguageModel(config)
    generator = torch.Generator(device).manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, parameter in net.state_dict().items():
        kind = layer_kind(name)
        if kind in drawn:
            weights[name] = drawn[kind].clone()
        else:
            weights[name] = drawn[kind] = draw(name, tuple(parameter.shape), dtype, generator)
    net.load_state_dict(weights, assign=True)
    return net.to(device).eval()


def layer_kind(name: str) -> str:
    """The parameter's name in the first layer."""
    return re.sub(r"\.layers\.\d+\.", ".layers.0.", name)


def draw(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Norms of one, and normal numbers of deviation 0.02 elsewhere."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=dtype, device=generator.device)
    return torch.empty(shape, dtype=dtype, device=generator.device).normal_(
        0.0, 0.02, generator=generator
    )


def slice_of(net: AudioLanguageModel, layers: int, vocabulary: int) -> AudioLanguageModel:
    """The first layers of ``net``'s decoder and the first tokens, a model of their own on its tensors."""
    text = replace(net.config.text, num_hidden_layers=layers, vocab_size=vocabulary)
    with torch.device("meta"):
        part = AudioLanguageModel(geometry(text, net.config.audio))
    held = net.state_dict()
    part.load_state_dict(
        {name: held[name][: len(p)] for name, p in part.state_dict().items()}, assign=True
    )
    return part.to("cpu").eval()
