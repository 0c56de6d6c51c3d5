"""Runs the model for the engine: windows to audio tokens, and one step over several sequences."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from afnext import ops
from afnext.audio.windows import AudioWindow
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.ops.runtime import named_range

from .packed import PackedModel, can_pack, require_quantization, version
from .packed_cache import PackedCache
from .pages import PagePool, Sequence, kv_dtype, page_bytes

PREFILL_CHUNK = 2048


@dataclass(slots=True)
class Chunk:
    """What one sequence brings to a step.

    Attributes:
        ids: its new tokens.
        start: tokens its pages hold already.
        table: int32 ``[pages]``, with room for the new tokens.
        logits: of how many of the new tokens, from the last one back, logits are wanted.
        audio: places in ``ids`` (int64 ``[n]``) and the embeddings ``[n, hidden]`` that stand there.
    """

    ids: Items[int]
    start: int
    table: np.ndarray
    logits: int = 1
    audio: Items[tuple[np.ndarray, Tensor]] = ()


class PagedAttend:
    """Attention of one step over the pages of its sequences; the decoder's layers call it in turn.

    New keys are turned by their positions and appended, then the new queries see all before them.

    Args:
        pool: where the pages are.
        table: int32 ``[N, pages]``, on the host.
        ends: where sequences begin and end among the new tokens, from 0.
        starts: tokens each sequence holds already.
        inv_freq: float32 ``[D / 2]``.
    """

    def __init__(
        self, pool: PagePool, table: Tensor, ends: Items[int], starts: Items[int], inv_freq: Tensor
    ) -> None:
        self._pool = pool
        self._layer = 0
        # The batch stays on the host, where kernels on a GPU are told it from.
        self._table = table
        self._ends = torch.tensor(ends, dtype=torch.int32)
        self._start = torch.tensor(starts, dtype=torch.int32)
        self._lengths = self._start + self._ends.diff()
        spans = zip(starts, ends[:-1], ends[1:], strict=True)
        positions = torch.cat(
            [torch.arange(s, s + b - a, dtype=torch.float32) for s, a, b in spans]
        ).to(inv_freq.device)
        self._rotation = (positions, inv_freq)
        self._own = ops.Rotation(positions, positions, inv_freq)
        # Pages of 8 bits are read even so: what is said must not depend on who else is in the step.
        self._fresh = not any(starts) and pool.k_scales is None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._pool.keys[self._layer], self._pool.values[self._layer]
        k_scales, v_scales = self._pool.scales(self._layer)
        self._layer += 1
        ops.paged_append(
            k, v, keys, values, self._table, self._ends, self._start, rotation=self._rotation,
            k_scales=k_scales, v_scales=v_scales,
        )  # fmt: skip
        if self._fresh:  # nothing but the new keys to see, and they still lie in order
            out, _ = ops.attention(
                q, k, v, cu_seqlens_q=self._ends, causal=True, rotation=self._own
            )
            return out
        out, _ = ops.paged_attention(
            q, keys, values, self._table, self._ends, self._lengths, rotation=self._rotation,
            k_scales=k_scales, v_scales=v_scales,
        )  # fmt: skip
        return out


class Runner:
    """The model at work: one step over several sequences, or a sequence that is alone in its pool.

    On a CPU the weights are packed once and run fused (``packed``); on other devices, and where modules
    were replaced (adapters, say), the model's own modules run. Not for several threads at once.

    Args:
        net: its parameters must be on one device; weights in one dtype.
        quantization: how packed weights are stored: "int8", "int4", or None for their own dtype.
        cache: where the packing of these very weights is kept, for as long as they do not change.
        kv_cache_dtype: how keys and values are kept: "int8", on CUDA "fp8", or None for the weights' dtype.

    Attributes:
        kv_dtype: of keys and values.
        bytes_per_token: weights that a decode step reads.

    Raises:
        ValueError: no such quantization or kv_cache_dtype, or weights that cannot be packed are to be
            quantised.
    """

    def __init__(
        self,
        net: AudioLanguageModel,
        quantization: str | None = None,
        cache: PackedCache | None = None,
        kv_cache_dtype: str | None = None,
    ) -> None:
        require_quantization(quantization)
        self.net = net
        weight = net.language_model.model.embed_tokens.weight
        self.dtype, self.device = weight.dtype, weight.device
        self.kv_dtype = kv_dtype(kv_cache_dtype, self.dtype, self.device)
        self.quantization = quantization
        self._cache = cache
        self._packed: PackedModel | None = None
        self._seen: object = None
        self.refresh()

    def refresh(self) -> bool:
        """Pack the weights again where they changed since the last call; returns whether they did."""
        current = version(self.net)
        changed = current != self._seen
        if not can_pack(self.net):
            if self.quantization is not None:
                raise ValueError(
                    "quantization: needs the model's own layers on a CPU, without adapters"
                )
            self._packed = None
        elif changed or self._packed is None:
            self._packed = None  # the old weights go before the new ones come
            self._packed = PackedModel(self.net, self.quantization, self._cache)
            self._cache = None
        self._seen = current
        if changed:
            self.bytes_per_token = self._count_bytes()
        return changed

    def mel(self, windows: Items[AudioWindow]) -> AudioBatch:
        """Log-mel features of some windows."""
        return AudioBatch.collate([list(windows)], max_windows=1).to(self.device, self.dtype)

    def encode(self, audio: AudioBatch) -> Tensor:
        """Audio tokens ``[audio.num_tokens, hidden]``."""
        with named_range("afnext.encode"):
            encode = self.net.encode if self._packed is None else self._packed.encode
            return encode(audio).to(self.dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings ``[T, hidden]`` of text, int64 ``[T]``, in memory of their own."""
        if self._packed is None:
            return self.net.language_model.model.embed_tokens(ids.to(self.device)).clone()
        return self.net.language_model.model.embed_tokens.weight.index_select(0, ids)

    def step(self, chunks: Items[Chunk], pool: PagePool) -> Tensor:
        """Append each chunk to its sequence; logits ``[sum(chunk.logits), vocab]``, in their order."""
        ends = [0, *accumulate(len(c.ids) for c in chunks)]
        wide = any(len(c.ids) > 1 for c in chunks)
        with named_range("afnext.prefill" if wide else "afnext.decode"):
            hidden = self.embed(torch.tensor([i for c in chunks for i in c.ids]))
            for chunk, first in zip(chunks, ends, strict=False):
                for places, tokens in chunk.audio:
                    _put(hidden, places + first, tokens)
            starts = [c.start for c in chunks]
            hidden = self._layers(hidden, pool, _tables(chunks), ends, starts)
            wanted = [
                i
                for c, end in zip(chunks, ends[1:], strict=True)
                for i in range(end - c.logits, end)
            ]
            if not wanted:
                return hidden.new_empty(0, self.net.config.text.vocab_size)
            if len(wanted) < ends[-1]:
                hidden = hidden[torch.tensor(wanted, device=self.device)]
            return self._logits(hidden)

    def prefill(self, embeddings: Tensor, sequence: Sequence) -> Tensor:
        """Append a whole prompt, a chunk at a time; logits ``[vocab]`` of its last token.

        ``embeddings`` may be written over.
        """
        hidden = embeddings
        with named_range("afnext.prefill"):
            for chunk in embeddings.contiguous().split(PREFILL_CHUNK):
                hidden = self._append(chunk, sequence)
            return self._logits(hidden[-1:])[0]

    def decode(self, token: int, sequence: Sequence) -> Tensor:
        """Append one token; logits ``[vocab]`` of what follows."""
        table = self.net.language_model.model.embed_tokens.weight
        with named_range("afnext.decode"):
            return self._logits(self._append(table[token : token + 1].clone(), sequence))[0]

    def new_pool(self, tokens: int, page_size: int) -> PagePool:
        """A pool that holds ``tokens`` tokens."""
        pages = -(-tokens // page_size)
        return PagePool(self.net.config.text, pages, page_size, self.kv_dtype, self.device)

    def cache_bytes(self, tokens: int) -> int:
        """Of the keys and values of so many tokens."""
        return page_bytes(self.net.config.text, tokens, self.kv_dtype)

    def _count_bytes(self) -> int:
        if self._packed is not None:
            return self._packed.bytes_per_token
        decoder = self.net.language_model
        modules = [decoder.lm_head, decoder.model.norm, *decoder.model.layers]
        return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())

    def _append(self, hidden: Tensor, sequence: Sequence) -> Tensor:
        tokens = hidden.shape[0]
        start = [sequence.length]
        hidden = self._layers(hidden, sequence.pool, sequence.table, [0, tokens], start)
        sequence.length += tokens
        return hidden

    def _layers(
        self, hidden: Tensor, pool: PagePool, table: Tensor, ends: Items[int], starts: Items[int]
    ) -> Tensor:
        if self._packed is not None:
            places = (torch.tensor(n, dtype=torch.int32) for n in (ends, starts))
            return self._packed.batch(hidden, pool, table, *places)
        decoder = self.net.language_model.model
        attend = PagedAttend(pool, table, ends, starts, decoder.inv_freq.values)
        for layer in decoder.layers:
            hidden = layer(hidden, attend)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        if self._packed is not None:
            return self._packed.logits(hidden)
        language_model = self.net.language_model
        return language_model.lm_head(language_model.model.norm(hidden))


def _tables(chunks: Items[Chunk]) -> Tensor:
    """int32 ``[N, widest]``, unused places 0."""
    if len(chunks) == 1:
        return torch.from_numpy(chunks[0].table)[None]
    tables = np.zeros((len(chunks), max(len(c.table) for c in chunks)), np.int32)
    for row, chunk in zip(tables, chunks, strict=True):
        row[: len(chunk.table)] = chunk.table
    return torch.from_numpy(tables)


def _put(hidden: Tensor, places: np.ndarray, rows: Tensor) -> None:
    """``hidden[places] = rows``; audio mostly stands in one piece, and copying that needs no index."""
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 == len(places):
        hidden[first : last + 1] = rows
    else:
        hidden.index_copy_(0, torch.from_numpy(places).to(hidden.device), rows)
