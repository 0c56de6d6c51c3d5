"""The audio encoder: AF-Whisper over packed windows, with no work for padding.

transformers pads every window to 3,000 frames, masks the padded keys and drops the padded outputs.
Here only the frames that reach an output are computed; the result is the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Packed
from .audio_batch import WindowPlan
from .config import AudioConfig
from .layers import LayerNorm, Linear, embedding, linear


def gathered(rows: Tensor, reads: Tensor) -> Tensor:
    """Rows ``[R, I]`` and what each output reads, int64 ``[C, 3]`` -> ``[C, 3, I]``; index R reads zeros."""
    padded = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
    return padded.index_select(0, reads.flatten()).unflatten(0, reads.shape)


class PackedConv1d(nn.Conv1d):
    """Width-3 convolution over packed rows as one matrix product; parameters of ``nn.Conv1d``."""

    def forward(self, input: Tensor, reads: Tensor) -> Tensor:  # type: ignore[override]
        """Rows ``input [R, I]`` and what each output reads, int64 ``[C, 3]`` -> ``[C, O]``.

        Index R reads zeros.
        """
        columns = gathered(input, reads).transpose(1, 2).flatten(1)
        return linear(columns, self.weight.flatten(1), self.bias)


class EncoderAttention(nn.Module):
    """Bidirectional multi-head attention within each window; keys have no bias, as in Whisper."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_dim = config.head_dim
        self.q_proj = Linear(size, size)
        self.k_proj = Linear(size, size, bias=False)
        self.v_proj = Linear(size, size)
        self.out_proj = Linear(size, size)

    def forward(self, hidden: Tensor, attend: Packed) -> Tensor:
        heads = (-1, self.head_dim)
        q, k, v = (p(hidden).unflatten(-1, heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v).flatten(-2))


class EncoderLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.self_attn = EncoderAttention(config)
        self.self_attn_layer_norm = LayerNorm(config.hidden_size)
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = LayerNorm(config.hidden_size)

    def forward(self, hidden: Tensor, attend: Packed) -> Tensor:
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), attend)
        return hidden + self.fc2(F.gelu(self.fc1(self.final_layer_norm(hidden))))


class AudioEncoder(nn.Module):
    """``audio_tower``: two convolutions, transformer blocks, pooling by two, layer norm."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.conv1 = PackedConv1d(config.num_mel_bins, size, kernel_size=3, padding=1)
        self.conv2 = PackedConv1d(size, size, kernel_size=3, stride=2, padding=1)
        self.embed_positions = embedding(config.max_source_positions, size)
        self.embed_positions.requires_grad_(False)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.layer_norm = LayerNorm(size)

    def forward(self, features: Tensor, plan: WindowPlan) -> Tensor:
        """Encode packed windows.

        Args:
            features: ``[T, 128]``, log-mel frames of the plan's windows.
            plan: of the same windows, on the same device.

        Returns:
            ``[n, hidden_size]``, one row per audio token (40 ms).
        """
        hidden = F.gelu(self.conv1(features.to(self.conv1.weight.dtype), plan.conv1))
        hidden = F.gelu(self.conv2(hidden, plan.conv2))
        hidden = hidden + self.embed_positions(plan.positions)
        attend = Packed(plan.lengths, cu_seqlens=plan.cu_seqlens)
        for layer in self.layers:
            hidden = layer(hidden, attend)
        pairs = hidden.index_select(0, plan.pooled.flatten()).unflatten(0, plan.pooled.shape)
        return self.layer_norm(pairs.mean(dim=1))


def sinusoids(length: int, channels: int) -> Tensor:
    """Whisper's position table, float32 ``[length, channels]``: sines, then cosines."""
    half = channels // 2
    step = math.log(10_000) / max(half - 1, 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(half))
    table = torch.zeros(length, channels)
    table[:, :half], table[:, half : 2 * half] = angles.sin(), angles.cos()
    return table
