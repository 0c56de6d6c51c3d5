"""The model as the engine runs it on a GPU: neighbouring ops fused, the decoder's quantised weights packed.

Weights that carry integers are packed as they are, others are quantised first.

Products of weights that keep their dtype are torch's, the fastest for many rows and nearly so for one; those
of quantised weights are ours. The encoder and the adaptor keep their dtype: a window has many rows.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afnext import ops
from afnext.model import AudioLanguageModel
from afnext.model.attention import Attend
from afnext.model.decoder import DecoderLayer
from afnext.model.quantized import kept_together

# How quantised weights are stored: the decoder's layers, its head, which feels four bits most.
GPU_FORMATS = {
    "int8": ("int8", "int8"),
    "int4": ("int4-g128", "int8"),
    "fp8": ("fp8", "fp8"),
}


def place(net: AudioLanguageModel, device: torch.device) -> None:
    """Move all of ``net`` to a device but the weights that ``GpuModel`` packs there one after another."""
    model = net.language_model
    packed = {m for m in model.modules() if isinstance(m, nn.Linear)}
    for module in net.modules():
        if module not in packed and not any(module.children()):
            module.to(device)


class GpuModel:
    """Encoder, adaptor and decoder of ``net``.

    Args:
        net: as ``place`` leaves it where weights are quantised, else wholly on its device.
        quantization: one of ``GPU_FORMATS``, or None for the weights' own dtype.

    Attributes:
        encode: a batch of audio to audio tokens.
        bytes_per_token: weights that a decode step reads.
    """

    def __init__(self, net: AudioLanguageModel, quantization: str | None) -> None:
        model = net.language_model
        device = model.model.embed_tokens.weight.device
        layers, head = GPU_FORMATS[quantization] if quantization else (None, None)
        self.encode = net.encode
        self._norm = model.model.norm
        self._layers = [
            _Layer(cast(DecoderLayer, layer), layers, device) for layer in model.model.layers
        ]
        self._head = _Product([model.lm_head], head, device)
        norm = self._norm.weight
        self.bytes_per_token = sum(layer.nbytes for layer in self._layers)
        self.bytes_per_token += self._head.nbytes + norm.numel() * norm.element_size()

    def layers(self, hidden: Tensor, attend: Attend) -> Tensor:
        """The decoder's layers over ``hidden [T, H]``, to be normed."""
        branch: Tensor | None = None
        for layer in self._layers:
            hidden, branch = layer(hidden, branch, attend)
        return hidden if branch is None else hidden + branch

    def logits(self, hidden: Tensor) -> Tensor:
        """``[T, vocab]`` of what the layers returned."""
        return self._head(ops.rms_norm(hidden, self._norm.weight, self._norm.eps))


class _Layer:
    """A decoder layer; each half adds the branch of the one before it where it norms."""

    def __init__(self, layer: DecoderLayer, format: str | None, device: torch.device) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        self._heads = (-1, attention.head_dim)
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._widths = [p.weight.shape[0] for p in projections]
        # Plain weights lie apart: side by side they would take their memory twice.
        self._qkv = [
            _Product(group, format, device)
            for group in ([projections] if format else [[p] for p in projections])
        ]
        self._out = _Product([attention.o_proj], format, device)
        gate_up = [mlp.gate_proj, mlp.up_proj]
        self._gate_up = [
            _Product(group, format, device, gate_up=format is not None)
            for group in ([gate_up] if format else [[p] for p in gate_up])
        ]
        self._down = _Product([mlp.down_proj], format, device)
        products = [*self._qkv, self._out, *self._gate_up, self._down]
        self.nbytes = sum(p.nbytes for p in products)
        self.nbytes += sum(n.weight.numel() * n.weight.element_size() for n in self._norms)

    def __call__(
        self, hidden: Tensor, branch: Tensor | None, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        first, second = self._norms
        if branch is None:
            normed = ops.rms_norm(hidden, first.weight, first.eps)
        else:
            normed, hidden = ops.rms_norm(branch, first.weight, first.eps, hidden)
        parts = [product(normed) for product in self._qkv]
        parts = list(parts[0].split(self._widths, -1)) if len(parts) == 1 else parts
        q, k, v = (part.unflatten(-1, self._heads) for part in parts)
        branch = self._out(attend(q, k, v).flatten(-2))
        normed, hidden = ops.rms_norm(branch, second.weight, second.eps, hidden)
        wide = [product(normed) for product in self._gate_up]
        return hidden, self._down(wide[0] if len(wide) == 1 else ops.silu_mul(*wide))


class _Product:
    """Linear layers side by side: packed in a format, or one of them as it is."""

    def __init__(
        self,
        modules: Items[nn.Linear],
        format: str | None,
        device: torch.device,
        gate_up: bool = False,
    ) -> None:
        self._weight: Tensor | ops.PackedWeight
        self._activation = "silu_mul" if gate_up else None
        biases = [m.bias.detach() for m in modules if m.bias is not None]
        self._bias = torch.cat(biases).to(device) if biases else None
        if format is None:
            (module,) = modules
            self._weight = module.weight.detach()
            self.nbytes = self._weight.numel() * self._weight.element_size()
            return
        if (integers := kept_together([m.weight for m in modules])) is not None:
            self._weight = ops.pack(integers.to(device), gate_up=gate_up)
        else:
            self._weight = ops.pack(
                torch.cat([m.weight.detach().to(device) for m in modules]), format, gate_up
            )
        self.nbytes = self._weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self._weight, Tensor):
            return F.linear(x, self._weight, self._bias)
        return ops.linear(x, self._weight, self._bias, activation=self._activation)
