"""Initial weights by name, so that a seed gives the same network however the modules are built."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from afnext.model import AudioLanguageModel
from afnext.model.encoder import sinusoids

MATCHING_LAYERS = 3


def _scale(name: str, parameter: Tensor, width: int) -> float:
    if "conv" in name:
        return 1.8 * parameter[0].numel() ** -0.5  # what is heard weighs as much as where it is
    if "linear_2" in name:
        return 0.003  # audio tokens begin as large as the embeddings of words
    scale = 0.02 if parameter.shape[-1] >= width or "embed" in name else 0.05
    return 0.4 * scale if name.endswith(("o_proj.weight", "down_proj.weight")) else scale


@torch.no_grad()
def initialise(net: AudioLanguageModel, times: Tensor, seed: int) -> None:
    """Fill every parameter in place; ``times`` int64 are the ids of "0.0" to "9.9", or of none.

    Beyond the usual normals: one query head of each KV group in the first layers starts with the
    weights of its key head, so that it attends to tokens like its own; and the time tokens start as
    sinusoids of their time, so that near times have near embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(net.named_parameters())
    embedding = parameters["language_model.model.embed_tokens.weight"]
    width = embedding.shape[1]
    for name in sorted(parameters):
        parameter = parameters[name]
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1)
        elif "embed_positions" in name:
            parameter.copy_(sinusoids(*parameter.shape))
        elif name != "language_model.lm_head.weight":
            parameter.normal_(0, _scale(name, parameter, width), generator=generator)
    text = net.config.text
    heads, kv_heads, head_dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    for layer in range(min(MATCHING_LAYERS, text.num_hidden_layers)):
        stem = f"language_model.model.layers.{layer}.self_attn"
        query, key = parameters[f"{stem}.q_proj.weight"], parameters[f"{stem}.k_proj.weight"]
        query.normal_(0, 0.03, generator=generator)
        for group in range(kv_heads):
            matching = torch.randn(head_dim, width, generator=generator) / math.sqrt(width)
            head = group * (heads // kv_heads)
            query[head * head_dim : (head + 1) * head_dim] = matching
            key[group * head_dim : (group + 1) * head_dim] = matching
    frequency = torch.logspace(math.log10(0.05), math.log10(3.0), width // 2)
    phase = 2 * math.pi * 0.1 * torch.arange(len(times))[:, None] * frequency
    embedding[times] = torch.cat((phase.sin(), phase.cos()), 1) * 0.02 * math.sqrt(2)
    if "language_model.lm_head.weight" in parameters:
        parameters["language_model.lm_head.weight"].copy_(embedding)
