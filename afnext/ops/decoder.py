"""The layers of a Qwen2 decoder over a paged cache, for inference: one call into C++ a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from . import _check as check
from ._compiled import compiled
from .pack import PackedWeight
from .runtime import named_range


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """What one layer computes with. Norms and bias are of the activations' dtype.

    Attributes:
        input_norm, post_attention_norm: ``[H]``.
        qkv: packed ``[(Hq + 2 Hkv) D, H]``: rows of queries, then of keys, then of values.
        qkv_bias: ``[(Hq + 2 Hkv) D]`` or None.
        out: packed ``[H, Hq D]``.
        gate_up: packed ``[2 F, H]``, with ``gate_up=True``.
        down: packed ``[H, F]``.
    """

    input_norm: Tensor
    qkv: PackedWeight
    qkv_bias: Tensor | None
    out: PackedWeight
    post_attention_norm: Tensor
    gate_up: PackedWeight
    down: PackedWeight

    @property
    def nbytes(self) -> int:
        """Bytes that a step reads of it."""
        small = (self.input_norm, self.post_attention_norm, self.qkv_bias)
        packed = (self.qkv, self.out, self.gate_up, self.down)
        return sum(w.nbytes for w in packed) + sum(t.nbytes for t in small if t is not None)


def _held(layer: DecoderLayer) -> DecoderLayer:
    """The layer with tensors of its own: the compiled decoder reads memory, and a Parameter that is given
    other ``.data`` would free what it had."""

    def tensor(value: Any) -> Any:  # what is none is refused by the compiled decoder
        return value.detach() if isinstance(value, Tensor) else value

    def packed(weight: PackedWeight) -> PackedWeight:
        return replace(weight, data=tensor(weight.data))

    return DecoderLayer(
        input_norm=tensor(layer.input_norm),
        qkv=packed(layer.qkv),
        qkv_bias=tensor(layer.qkv_bias),
        out=packed(layer.out),
        post_attention_norm=tensor(layer.post_attention_norm),
        gate_up=packed(layer.gate_up),
        down=packed(layer.down),
    )


class Decoder:
    """Decoder layers with packed weights: norm, attention over pages, SwiGLU, residuals.

    A step is one call: no Python between its ops, and no memory allocated once a step of its size has
    been seen (with pages of 8 bits it is a call an op, and each allocates its output). What it computes
    is stated by ``afnext.model.decoder``, which it is tested against.
    Neither differentiable nor safe to call from several threads at once.

    Args:
        layers: their weights, whose memory is kept: a Parameter may be given other ``.data`` later.
        heads, kv_heads, head_dim: Hq, Hkv and D.
        eps: of the norms.
        inv_freq: float32 ``[D / 2]``; a token's position in its sequence turns queries and keys, the
            halves of a head paired.

    Raises:
        ValueError: naming the part whose shape or dtype does not fit.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
        inv_freq: Tensor,
    ) -> None:
        self.layers = tuple(layers)
        self._shape = (heads, kv_heads, head_dim)
        self._eps, self._inv_freq = eps, inv_freq.detach()
        self._compiled = compiled.Decoder(
            [_held(layer) for layer in self.layers], heads, kv_heads, head_dim, eps, self._inv_freq
        )

    def __call__(
        self,
        hidden: Tensor,
        k_pages: Sequence[Tensor],
        v_pages: Sequence[Tensor],
        page_table: Tensor,
        cu_seqlens: Tensor,
        start: Tensor,
        *,
        k_scales: Sequence[Tensor] | None = None,
        v_scales: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Run every layer over ``hidden``, in place, and append its keys and values to the pages.

        Args:
            hidden: float32 or bfloat16 ``[T, H]``, contiguous: the embeddings of each request's new
                tokens, one request after another. What is returned still lacks the final norm.
            k_pages, v_pages: for each layer ``[P, Hkv, slot, D]`` of hidden's dtype, or of 8 bits.
            page_table: int32 ``[N, max_pages]``.
            cu_seqlens: int32 ``[N + 1]``, where requests begin and end in ``hidden``.
            start: int32 ``[N]``, tokens that a request's pages hold already.
            k_scales, v_scales: for each layer float32 ``[P, Hkv, slot]`` beside pages of 8 bits.

        Returns:
            ``hidden``.

        Raises:
            ValueError: naming the argument that is wrong; nothing was written then.
        """
        check.require(not hidden.requires_grad, "decoder: hidden must not require gradients")
        with named_range("afnext::decoder"):  # torch does not see this call otherwise
            cache = (list(part or ()) for part in (k_pages, v_pages, k_scales, v_scales))
            self._compiled.run(hidden, *cache, page_table, cu_seqlens, start)
            return hidden
