"""The training forward: whole batches of equal windows, in plain torch, through the model's own modules.

Training runs rows that the served model never sees: several conversations behind one copy of their
audio, kept apart by a mask. It uses the parameters of ``AudioLanguageModel`` by name and gives the same
logits as the model's own forward (tested).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afnext.audio.windows import WINDOW_SECONDS, WINDOW_TOKENS
from afnext.model import AudioLanguageModel
from afnext.training.data import Batch, Features


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention [B, H, T, D]; written out, as it is faster backwards than torch's on a CPU."""
    with torch.autocast(q.device.type, enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        return torch.softmax(scores, -1) @ v


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _heads(x: Tensor, width: int) -> Tensor:
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def encode_window(tower: Any, window: Features, heads: int) -> Tensor:
    """Encoder features [B, tokens, width] of one window of every clip."""
    first, second = tower.conv1, tower.conv2
    x = F.gelu(F.conv1d(window.mel.transpose(1, 2), first.weight, first.bias, padding=1))
    x = F.gelu(F.conv1d(x, second.weight, second.bias, stride=2, padding=1))
    x = x.transpose(1, 2)[:, : (window.frames - 1) // 2 + 1]
    x = x + tower.embed_positions.weight[: x.shape[1]].to(x.dtype)
    for layer in tower.layers:
        attention, y = layer.self_attn, layer.self_attn_layer_norm(x)
        width = y.shape[-1] // heads
        q, k, v = (
            _heads(_linear(p, y), width)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        x = x + _linear(attention.out_proj, _attend(q, k, v, None).transpose(1, 2).flatten(2))
        x = x + _linear(layer.fc2, F.gelu(_linear(layer.fc1, layer.final_layer_norm(x))))
    pairs = x.shape[1] // 2
    return tower.layer_norm(x[:, : 2 * pairs].unflatten(1, (pairs, 2)).mean(2))


def encode(net: AudioLanguageModel, batch: Batch) -> Tensor:
    """Encoder features [B, tokens, width] of whole clips, windows joined."""
    heads = net.config.audio.num_attention_heads
    return torch.cat([encode_window(net.audio_tower, w, heads) for w in batch.windows], 1)


def adapt(net: AudioLanguageModel, encoded: Tensor) -> Tensor:
    """Rotary time embedding, then the adaptor: [B, tokens, text width]."""
    rows, tokens = encoded.shape[:2]
    index = torch.arange(tokens)
    start = index // WINDOW_TOKENS * float(WINDOW_SECONDS)
    x = net.rote(encoded.flatten(0, 1), start.repeat(rows), (index % WINDOW_TOKENS).repeat(rows))
    x = x.unflatten(0, (rows, tokens))
    projector = net.multi_modal_projector
    return _linear(projector.linear_2, F.gelu(_linear(projector.linear_1, x)))


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _norm(norm: Any, x: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), eps)


Cache = list[tuple[Tensor, Tensor]]
"""Keys and values [B, H, T, D] of every layer, rotated."""


def decode(
    net: AudioLanguageModel,
    x: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    cache: Cache | None = None,
) -> Tensor:
    """Last hidden states of embeddings, normed.

    Args:
        x: [B, S, width]; positions: int [B, S].
        bias: added to the scores, broadcastable to [B, 1, S, T]; T counts the cached keys and S.
        cache: keys and values of earlier tokens; this call's are appended to it.

    Returns:
        [B, S, width].
    """
    config = net.config.text
    model: Any = net.language_model.model
    width, eps = config.head_dim, config.rms_norm_eps
    inverse = config.rope_theta ** (-torch.arange(0, width, 2, device=x.device) / width)
    phase = positions[:, None, :, None].float() * inverse
    cos, sin = phase.cos().to(x.dtype), phase.sin().to(x.dtype)
    group = config.num_attention_heads // config.num_key_value_heads
    for index, layer in enumerate(model.layers):
        attention, y = layer.self_attn, _norm(layer.input_layernorm, x, eps)
        q, k, v = (
            _heads(_linear(p, y), width)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        k, v = _rope(k, cos, sin).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if cache is not None:
            if index < len(cache):
                k, v = torch.cat((cache[index][0], k), 2), torch.cat((cache[index][1], v), 2)
            cache[index : index + 1] = [(k, v)]
        out = _attend(_rope(q, cos, sin), k, v, bias)
        x = x + _linear(attention.o_proj, out.transpose(1, 2).flatten(2))
        y = _norm(layer.post_attention_layernorm, x, eps)
        gate, up = _linear(layer.mlp.gate_proj, y), _linear(layer.mlp.up_proj, y)
        x = x + _linear(layer.mlp.down_proj, F.silu(gate) * up)
    return _norm(model.norm, x, eps)


def answer_logits(net: AudioLanguageModel, audio: Tensor, batch: Batch) -> Tensor:
    """Logits [targets, vocabulary] at every position of the packed text that has a target."""
    text, embed = batch.text, net.language_model.model.embed_tokens
    rows, tokens = audio.shape[:2]
    prefix = embed(batch.prefix).to(audio.dtype).expand(rows, -1, -1)
    x = torch.cat((prefix, audio, embed(text.ids).to(audio.dtype)), 1)
    shared = prefix.shape[1] + tokens
    positions = torch.cat((torch.arange(shared).expand(rows, -1), text.positions), 1)
    segments = F.pad(text.segments, (shared, 0))
    size = x.shape[1]
    visible = (segments[:, None] == 0) | (segments[:, None] == segments[:, :, None])
    visible &= torch.ones(size, size, dtype=torch.bool).tril()
    bias = torch.zeros(visible.shape, dtype=x.dtype).masked_fill_(~visible, -1e4)[:, None]
    hidden = decode(net, x, positions, bias)[:, shared:]
    return _linear(net.language_model.lm_head, hidden[text.targets >= 0])
