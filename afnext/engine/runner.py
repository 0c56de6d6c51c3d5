"""Runs the model for the engine: audio to tokens, prompt to cache, a token to logits."""

from __future__ import annotations

from collections.abc import Sequence as Windows

import torch
from torch import Tensor

from afnext import ops
from afnext.audio.windows import AudioWindow
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.ops.runtime import named_range

from .packed import PackedModel, can_pack, require_quantization, version
from .packed_cache import PackedCache
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

    On a CPU the weights are packed once and run fused (``packed``); on other devices, and where modules
    were replaced (adapters, say), the model's own modules run.

    Args:
        net: its parameters must be on one device; weights in one dtype.
        quantization: how packed weights are stored: "int8", "int4", or None for their own dtype.
        cache: where the packing of these very weights is kept, for as long as they do not change.

    Raises:
        ValueError: no such quantization, or weights that cannot be packed are to be quantised.
    """

    def __init__(
        self,
        net: AudioLanguageModel,
        quantization: str | None = None,
        cache: PackedCache | None = None,
    ) -> None:
        require_quantization(quantization)
        self.net = net
        weight = net.language_model.model.embed_tokens.weight
        self.dtype, self.device = weight.dtype, weight.device
        self.quantization = quantization
        self._cache = cache
        self._packed: PackedModel | None = None
        self._packed_from: object = None
        self.refresh()

    @property
    def bytes_per_token(self) -> int:
        """Weights that a decode step reads."""
        if self._packed is not None:
            return self._packed.bytes_per_token
        decoder = self.net.language_model
        modules = [decoder.lm_head, decoder.model.norm, *decoder.model.layers]
        return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())

    def refresh(self) -> None:
        """Pack the weights again where they changed since."""
        if not can_pack(self.net):
            if self.quantization is not None:
                raise ValueError(
                    "quantization: needs the model's own layers on a CPU, without adapters"
                )
            self._packed = self._packed_from = None
            return
        current = version(self.net)
        if current != self._packed_from:
            self._packed = None  # the old weights go before the new ones come
            self._packed = PackedModel(self.net, self.quantization, self._cache)
            self._cache = None
            self._packed_from = current

    def mel(self, windows: Windows[AudioWindow]) -> AudioBatch:
        """Log-mel features of one prompt's windows."""
        batch = AudioBatch.collate([list(windows)], max_windows=WINDOWS_AT_ONCE)
        return batch.to(self.device, self.dtype)

    def embed(self, ids: Tensor, audio: AudioBatch | None) -> Tensor:
        """Embeddings ``[T, hidden]`` of a prompt, audio encoded and put in its place."""
        encode = None if self._packed is None else self._packed.encode
        with named_range("afnext.embed"):
            return self.net.embed(ids[None].to(self.device), audio, encode=encode)[0]

    def prefill(self, embeddings: Tensor, sequence: Sequence) -> Tensor:
        """Append a whole prompt, a chunk at a time; logits ``[vocab]`` of its last token.

        ``embeddings`` may be written over.
        """
        hidden = embeddings
        with named_range("afnext.prefill"):
            for chunk in embeddings.contiguous().split(PREFILL_CHUNK):
                hidden = self._layers(chunk, sequence)
            return self._logits(hidden[-1:])

    def decode(self, token: int, sequence: Sequence) -> Tensor:
        """Append one token; logits ``[vocab]`` of what follows."""
        table = self.net.language_model.model.embed_tokens.weight
        with named_range("afnext.decode"):
            return self._logits(self._layers(table[token : token + 1].clone(), sequence))

    def _layers(self, hidden: Tensor, sequence: Sequence) -> Tensor:
        tokens = hidden.shape[0]
        if self._packed is not None:
            hidden = self._packed.layers(hidden, sequence)
        else:
            decoder = self.net.language_model.model
            attend = PagedAttend(sequence, tokens, decoder.inv_freq.values, self.device)
            for layer in decoder.layers:
                hidden = layer(hidden, attend)
        sequence.length += tokens
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        if self._packed is not None:
            return self._packed.logits(hidden)[0]
        language_model = self.net.language_model
        return language_model.lm_head(language_model.model.norm(hidden))[0]

    def new_pool(self, tokens: int, page_size: int) -> PagePool:
        """A pool that holds ``tokens`` tokens."""
        pages = -(-tokens // page_size)
        return PagePool(self.net.config.text, pages, page_size, self.dtype, self.device)
