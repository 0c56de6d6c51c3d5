"""Runs the model for the engine: windows to audio tokens, and one step over several sequences."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from afnext.audio.windows import AudioWindow
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.ops.runtime import named_range

from .decode_graphs import MOST_SEQUENCES, DecodeGraphs
from .gpu_model import GpuModel
from .packed import PackedModel, require_quantization
from .packed_cache import PackedCache
from .paged_attend import PagedAttend
from .pages import PagePool, Sequence, kv_dtype, page_bytes
from .watch import Watch

PREFILL_CHUNK = 2048
GPU_WINDOWS = 8


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


class Runner:
    """The model at work: one step over several sequences, or a sequence that is alone in its pool.

    On a CPU the weights are packed once and run fused (``packed``), on CUDA decode steps are graphs
    (``gpu_model``, ``decode_graphs``); on other devices, and where modules were replaced (adapters, say), the
    model's own modules run. Not for several threads at once.

    Args:
        net: its parameters must be on one device; weights in one dtype. To be quantised on CUDA, as
            ``gpu_model.place`` leaves it.
        quantization: how packed weights are stored: "int8", "int4", on CUDA "fp8", or None for their own
            dtype.
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
        self.net = net
        weight = net.language_model.model.embed_tokens.weight
        self.dtype, self.device = weight.dtype, weight.device
        require_quantization(quantization, self.device)
        self.kv_dtype = kv_dtype(kv_cache_dtype, self.dtype, self.device)
        self.quantization = quantization
        self._cache = cache
        self._packed: PackedModel | None = None
        self._gpu: GpuModel | None = None
        self._graphs: WeakKeyDictionary[PagePool, DecodeGraphs] = WeakKeyDictionary()
        self._watch = Watch(net)
        self._seen: object = None
        self.refresh()

    def refresh(self) -> bool:
        """Pack the weights again where they changed since the last call; returns whether they did."""
        current = self._watch.version()
        changed = current != self._seen
        if not self._watch.packs:
            if self.quantization is not None:
                raise ValueError(
                    "quantization: needs the model's own layers on a CPU or CUDA, without adapters"
                )
            self._drop()
        elif changed or (self._packed is None and self._gpu is None):
            self._drop()  # the old weights go before the new ones come
            if self.device.type == "cpu":
                self._packed = PackedModel(self.net, self.quantization, self._cache)
                self._cache = None
            else:
                self._gpu = GpuModel(self.net, self.quantization)
        self._seen = current
        if changed:
            self.bytes_per_token = self._count_bytes()
        return changed

    @property
    def looks_ahead(self) -> bool:
        """Whether ``ahead`` is to be had."""
        return self._gpu is not None

    @property
    def windows_at_once(self) -> int:
        """How many windows of a prompt are worth encoding together: on a GPU it takes longer to launch what
        encodes one than to compute it.
        """
        return 1 if self._gpu is None else GPU_WINDOWS

    def mel(self, windows: Items[AudioWindow]) -> AudioBatch:
        """Log-mel features of some windows."""
        most = self.windows_at_once
        return AudioBatch.collate([list(windows)], max_windows=most).to(self.device, self.dtype)

    def encode(self, audio: AudioBatch) -> Tensor:
        """Audio tokens ``[audio.num_tokens, hidden]``."""
        with named_range("afnext.encode"):
            encode = self.net.encode if self._packed is None else self._packed.encode
            return encode(audio).to(self.dtype)

    def finish(self) -> None:
        """Wait for what was asked of the device, for a clock to tell how long that took."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings ``[T, hidden]`` of text, int64 ``[T]``, in memory of their own."""
        if self._packed is None:
            return self.net.language_model.model.embed_tokens(ids.to(self.device)).clone()
        return self.net.language_model.model.embed_tokens.weight.index_select(0, ids)

    def step(self, chunks: Items[Chunk], pool: PagePool) -> Tensor:
        """Append each chunk to its sequence; logits ``[sum(chunk.logits), vocab]``, in their order."""
        if self._gpu is not None and self._graphed(chunks):
            with named_range("afnext.decode"):
                ids, starts = [c.ids[0] for c in chunks], [c.start for c in chunks]
                return self._graphs_of(pool)(ids, starts, _tables(chunks)).clone()
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

    def ahead(
        self, chunks: Items[Chunk], pool: PagePool, rows: Items[Items[Items[float]]]
    ) -> list[list[int]]:
        """Append a token to each sequence, and those that it says behind it, but for the last.

        ``rows`` has how each sequence's tokens are drawn (``Sampler.rows``), as many for each. Gives the
        tokens, a list for each sequence. Their pages have room for them all. Needs ``looks_ahead``; the host
        waits once.
        """
        ids, starts = [c.ids[0] for c in chunks], [c.start for c in chunks]
        with named_range("afnext.decode"):
            said = self._graphs_of(pool).ahead(ids, starts, _tables(chunks), rows)
        return [list(row) for row in zip(*said, strict=True)]

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
            if self._gpu is not None:
                start, sequence.length = sequence.length, sequence.length + 1
                return self._graphs_of(sequence.pool)([token], [start], sequence.table)[0].clone()
            return self._logits(self._append(table[token : token + 1].clone(), sequence))[0]

    def new_pool(self, tokens: int, page_size: int) -> PagePool:
        """A pool that holds ``tokens`` tokens."""
        pages = -(-tokens // page_size)
        return PagePool(self.net.config.text, pages, page_size, self.kv_dtype, self.device)

    def cache_bytes(self, tokens: int) -> int:
        """Of the keys and values of so many tokens."""
        return page_bytes(self.net.config.text, tokens, self.kv_dtype)

    def _drop(self) -> None:
        self._packed = self._gpu = None
        self._graphs.clear()

    def _graphed(self, chunks: Items[Chunk]) -> bool:
        """Whether a step is one of graphs: a token of each sequence, and not too many of them."""
        return 0 < len(chunks) <= MOST_SEQUENCES and all(
            len(c.ids) == c.logits == 1 and not c.audio for c in chunks
        )

    def _graphs_of(self, pool: PagePool) -> DecodeGraphs:
        if pool not in self._graphs:
            assert self._gpu is not None
            self._graphs[pool] = DecodeGraphs(self.net, self._gpu, pool)
        return self._graphs[pool]

    def _count_bytes(self) -> int:
        if self._packed is not None:
            return self._packed.bytes_per_token
        if self._gpu is not None:
            return self._gpu.bytes_per_token
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
        if self._gpu is not None:
            return self._gpu.layers(hidden, attend)
        for layer in decoder.layers:
            hidden = layer(hidden, attend)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        if self._packed is not None:
            return self._packed.logits(hidden)
        if self._gpu is not None:
            return self._gpu.logits(hidden)
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
