"""Runs the model for the engine: audio to tokens, prompt to cache, a token to logits."""

from __future__ import annotations

from collections.abc import Sequence as Windows

import torch
from torch import Tensor

from afnext import ops
from afnext.audio.windows import AudioWindow
from afnext.model import AudioBatch, AudioLanguageModel

from .pages import PagePool, Sequence

PREFILL_CHUNK = 2048
WINDOWS_AT_ONCE = 4


class PagedAttend:
    """Attention of one step over the pages of one sequence; the decoder's layers call it in turn.

    New keys are turned by their positions and appended, then the new queries see the whole cache.
    """

    def __init__(
        self, sequence: Sequence, tokens: int, inv_freq: Tensor, device: torch.device
    ) -> None:
        start = sequence.length
        self._pool = sequence.pool
        self._layer = 0
        self._table = sequence.table.to(device)
        self._ends = torch.tensor([0, tokens], dtype=torch.int32, device=device)
        self._start = torch.tensor([start], dtype=torch.int32, device=device)
        self._lengths = self._start + tokens
        positions = torch.arange(start, start + tokens, dtype=torch.float32, device=device)
        self._rotation = (positions, inv_freq)
        self._own = ops.Rotation(positions, positions, inv_freq)
        self._fresh = start == 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._pool.keys[self._layer], self._pool.values[self._layer]
        self._layer += 1
        ops.paged_append(
            k, v, keys, values, self._table, self._ends, self._start, rotation=self._rotation
        )
        if self._fresh:  # nothing but the new keys to see, and they still lie in order
            out, _ = ops.attention(q, k, v, causal=True, rotation=self._own)
            return out
        out, _ = ops.paged_attention(
            q, keys, values, self._table, self._ends, self._lengths, rotation=self._rotation
        )
        return out


class Runner:
    """The model at work on one sequence.

    Args:
        net: its parameters must be on one device; weights in one dtype.
    """

    def __init__(self, net: AudioLanguageModel) -> None:
        self.net = net
        weight = net.language_model.model.embed_tokens.weight
        self.dtype, self.device = weight.dtype, weight.device
        decoder = net.language_model
        modules = [decoder.lm_head, decoder.model.norm, *decoder.model.layers]
        self.bytes_per_token = sum(
            p.numel() * p.element_size() for m in modules for p in m.parameters()
        )

    def mel(self, windows: Windows[AudioWindow]) -> AudioBatch:
        """Log-mel features of one prompt's windows."""
        batch = AudioBatch.collate([list(windows)], max_windows=WINDOWS_AT_ONCE)
        return batch.to(self.device, self.dtype)

    def embed(self, ids: Tensor, audio: AudioBatch | None) -> Tensor:
        """Embeddings ``[T, hidden]`` of a prompt, audio encoded and put in its place."""
        return self.net.embed(ids[None].to(self.device), audio)[0]

    def prefill(self, embeddings: Tensor, sequence: Sequence) -> Tensor:
        """Append a whole prompt, a chunk at a time; logits ``[vocab]`` of its last token."""
        hidden = embeddings
        for chunk in embeddings.split(PREFILL_CHUNK):
            hidden = self._layers(chunk, sequence)
        return self._logits(hidden[-1:])

    def decode(self, token: int, sequence: Sequence) -> Tensor:
        """Append one token; logits ``[vocab]`` of what follows."""
        ids = torch.tensor([token], device=self.device)
        hidden = self.net.language_model.model.embed_tokens(ids)
        return self._logits(self._layers(hidden, sequence))

    def _layers(self, hidden: Tensor, sequence: Sequence) -> Tensor:
        decoder = self.net.language_model.model
        tokens = hidden.shape[0]
        attend = PagedAttend(sequence, tokens, decoder.inv_freq.values, self.device)
        for layer in decoder.layers:
            hidden = layer(hidden, attend)
        sequence.length += tokens
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        language_model = self.net.language_model
        return language_model.lm_head(language_model.model.norm(hidden))[0]

    def new_pool(self, tokens: int, page_size: int) -> PagePool:
        """A pool that holds ``tokens`` tokens."""
        pages = -(-tokens // page_size)
        return PagePool(self.net.config.text, pages, page_size, self.dtype, self.device)
