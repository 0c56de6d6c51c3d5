"""The text decoder: Qwen2's, over packed sequences or under a dense mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import Attend, Dense, Packed
from .config import TextConfig
from .layers import Frequencies, Linear, RMSNorm, embedding, inverse_frequencies, silu_mul


class DecoderOutput(NamedTuple):
    """Logits ``[..., vocab]`` and the hidden states ``[..., hidden]``: the embeddings, then what each
    layer returned; the last one is normed, as in transformers.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...]


class DecoderAttention(nn.Module):
    """Causal grouped-query attention; rotation happens where queries meet keys."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        size, self.head_dim = config.hidden_size, config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(size, queries)
        self.k_proj = Linear(size, keys)
        self.v_proj = Linear(size, keys)
        self.o_proj = Linear(queries, size, bias=False)

    def forward(self, hidden: Tensor, attend: Attend) -> Tensor:
        heads = (-1, self.head_dim)
        q, k, v = (p(hidden).unflatten(-1, heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(attend(q, k, v).flatten(-2))


class DecoderMLP(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        size, wide = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(size, wide, bias=False)
        self.up_proj = Linear(size, wide, bias=False)
        self.down_proj = Linear(wide, size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(silu_mul(self.gate_proj(hidden), self.up_proj(hidden)))


class DecoderLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(config)
        self.mlp = DecoderMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, attend: Attend) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Decoder(nn.Module):
    """``language_model.model``: embeddings, layers, final norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        inv_freq = inverse_frequencies(config.rope_theta, config.head_dim) / config.rope_scale
        self.inv_freq = Frequencies(inv_freq)

    def forward(self, hidden: Tensor, attend: Attend) -> tuple[Tensor, ...]:
        """All hidden states, the last one normed: ``len(layers) + 1`` tensors of hidden's shape."""
        states = [hidden]
        for layer in self.layers:
            states.append(layer(states[-1], attend))
        states[-1] = self.norm(states[-1])
        return tuple(states)


class LanguageModel(nn.Module):
    """``language_model``: the decoder and its head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
    ) -> Tensor | DecoderOutput:
        """Causal language model over embeddings.

        Args:
            inputs_embeds: ``[B, S, hidden]``.
            position_ids: int ``[B, S]``; by default 0, 1, ... over each row's valid tokens.
            attention_mask: None; or ``[B, S]``, nonzero where a token is valid (padding may stand
                anywhere and gets zero logits); or bool ``[B, 1, S, S]``, True where a query sees a key
                (every query must see one), which runs in plain torch and costs S x S memory.
            output_hidden_states: also return what every layer saw.

        Returns:
            Logits ``[B, S, vocab]``, or ``DecoderOutput``.
        """
        batch, length, _ = inputs_embeds.shape
        if attention_mask is not None and attention_mask.dim() == 2:
            return self._padded(inputs_embeds, position_ids, attention_mask, output_hidden_states)
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device).expand(batch, length)
        attend: Attend
        if attention_mask is not None:
            attend = Dense(attention_mask, position_ids, self.model.inv_freq.values)
            states = self.model(inputs_embeds, attend)
        else:
            ends = torch.arange(batch + 1, dtype=torch.int32, device=inputs_embeds.device) * length
            attend = self.packed((length,) * batch, position_ids.reshape(-1), ends)
            states = self.model(inputs_embeds.flatten(0, 1), attend)
            states = tuple(s.unflatten(0, (batch, length)) for s in states)
        logits = self.lm_head(states[-1])
        return DecoderOutput(logits, states) if output_hidden_states else logits

    def packed(
        self, lengths: tuple[int, ...], positions: Tensor, cu_seqlens: Tensor | None = None
    ) -> Packed:
        """Causal attention over packed sequences with positions ``[T]``."""
        return Packed(
            lengths, cu_seqlens=cu_seqlens, causal=True, positions=positions,
            inv_freq=self.model.inv_freq.values,
        )  # fmt: skip

    def _padded(
        self, embeds: Tensor, position_ids: Tensor | None, mask: Tensor, output_hidden_states: bool
    ) -> Tensor | DecoderOutput:
        """Pack the valid tokens, so that padding costs nothing, and scatter the result."""
        if mask.shape != embeds.shape[:2]:
            raise ValueError(
                f"attention_mask must be {list(embeds.shape[:2])}, got {list(mask.shape)}"
            )
        valid = mask != 0
        if position_ids is None:
            position_ids = (valid.long().cumsum(-1) - 1).clamp(min=0)
        lengths = tuple(valid.sum(-1).tolist())
        states = self.model(embeds[valid], self.packed(lengths, position_ids[valid]))

        def scatter(rows: Tensor) -> Tensor:
            out = rows.new_zeros(*mask.shape, rows.shape[-1])
            out[valid] = rows
            return out

        logits = scatter(self.lm_head(states[-1]))
        if not output_hidden_states:
            return logits
        return DecoderOutput(logits, tuple(scatter(s) for s in states))
