"""The model as the engine runs it on a CPU: weights packed, neighbouring ops fused.

``AudioLanguageModel`` keeps one module a layer, for research and training; here a layer's projections
share one product, and activations, biases and residuals join the product before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from afnext import ops
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.model.audio_batch import WindowPlan
from afnext.model.config import TextConfig
from afnext.model.decoder import DecoderLayer, LanguageModel
from afnext.model.encoder import EncoderLayer, PackedConv1d, gathered
from afnext.model.layers import LayerNorm, Linear
from afnext.model.quantized import kept_in, kept_together
from afnext.ops import runtime

from .gpu_model import GPU_FORMATS
from .packed_cache import PackedCache
from .pages import PagePool, Sequence

# How weights are stored: the decoder's layers, its head, the encoder with the adaptor. The head and the
# encoder feel four bits most and are a small part of the bytes.
FORMATS = {"int8": ("int8", "int8", "int8"), "int4": ("int4-g32", "int8", "int8")}
# The same, of what a folder may hold: what is for a GPU alone leaves the encoder and the adaptor as they are.
STORED: Mapping[str, tuple[str, str, str | None]] = {**FORMATS, "fp8": (*GPU_FORMATS["fp8"], None)}
# What rounding x to 8 bits adds is small beside the error of int4 weights, and checked beside int8's.
ACTIVATIONS = {"int8": "auto", "int4-g32": "int8"}


def require_quantization(quantization: str | None, device: torch.device | None = None) -> None:
    """``quantization`` must be one that the engine knows on a device (by default, a CPU), or None.

    Raises:
        ValueError: it is not.
    """
    if quantization is None:
        return
    on_gpu = device is not None and device.type == "cuda"
    known = GPU_FORMATS if on_gpu else FORMATS
    if quantization in GPU_FORMATS and quantization not in known:
        raise ValueError(f"quantization: {quantization} needs CUDA: take int8")
    if quantization not in known:
        raise ValueError(f"quantization: must be one of {', '.join(known)}, got {quantization!r}")
    if device is not None and not on_gpu and device.type != "cpu":
        raise ValueError(f"quantization: {quantization} needs a CPU or CUDA, got device {device!s}")


def require_stored(quantization: str) -> None:
    """``quantization`` must be one that a folder may hold.

    Raises:
        ValueError: it is not.
    """
    if quantization not in STORED:
        raise ValueError(f"quantization: must be one of {', '.join(STORED)}, got {quantization!r}")


def stored_quantization(net: AudioLanguageModel) -> str | None:
    """The quantization whose integers ``net`` carries in its decoder's layers; None for none."""
    layers = "language_model.model.layers."
    formats = {w.format for name, w in kept_in(net).items() if name.startswith(layers)}
    return next((q for q, (format, _, _) in STORED.items() if formats == {format}), None)


class PackedModel:
    """Encoder, adaptor and decoder of ``net`` with packed weights.

    Args:
        net: on a CPU; see ``can_pack``. Its norms and embeddings are used where they lie.
        quantization: "int8", "int4", or None for the weights' own dtype.
        cache: packed weights kept on disk: read where they are there, written where they are not.
    """

    def __init__(
        self, net: AudioLanguageModel, quantization: str | None, cache: PackedCache | None = None
    ) -> None:
        dtype = str(net.language_model.lm_head.weight.dtype).removeprefix("torch.")
        layers, head, encoder = FORMATS[quantization] if quantization else (dtype,) * 3
        packing = Packing(cache.load() if cache is not None else {})
        self.encode = PackedEncoder(net, packing, encoder)
        self._decoder = PackedDecoder(net.language_model, net.config.text, packing, layers, head)
        if cache is not None and packing.made:
            cache.save(packing.weights)
        self.bytes_per_token = self._decoder.bytes_per_token
        self.logits = self._decoder.logits

    def layers(self, hidden: Tensor, sequence: Sequence) -> Tensor:
        """Run the decoder's layers over ``hidden [T, H]``, in place, behind what ``sequence`` holds."""
        ends = torch.tensor([0, hidden.shape[0]], dtype=torch.int32)
        start = torch.tensor([sequence.length], dtype=torch.int32)
        return self.batch(hidden, sequence.pool, sequence.table, ends, start)

    def batch(
        self, hidden: Tensor, pool: PagePool, table: Tensor, ends: Tensor, start: Tensor
    ) -> Tensor:
        """As ``layers``, over several sequences at once; arguments as those of ``ops.Decoder``."""
        return self._decoder.layers(
            hidden, pool.keys, pool.values, table, ends, start,
            k_scales=pool.k_scales, v_scales=pool.v_scales,
        )  # fmt: skip


class Packing:
    """Packs weights by name, unless they are known already.

    Attributes:
        weights: all that were asked for.
        made: how many of them were packed anew.
    """

    def __init__(self, known: Mapping[str, ops.PackedWeight]) -> None:
        self.weights: dict[str, ops.PackedWeight] = {}
        self.made = 0
        self._known = known

    def __call__(
        self, name: str, rows: Rows[Tensor], format: str, gate_up: bool = False
    ) -> ops.PackedWeight:
        """``rows`` ``[n, K]``, one above the other, as one weight."""
        shape = (sum(len(r) for r in rows), rows[0].shape[1])
        activations = ACTIVATIONS.get(format)
        found = self._known.get(name)
        if found is None or (*shape, format, activations) != (
            *(found.n, found.k, found.format, found.activations),
        ):
            self.made += 1
            found = ops.pack(
                _stacked(rows, format), format, gate_up=gate_up, activations=activations
            )
        self.weights[name] = found
        return found

    def linear(self, name: str, modules: Rows[nn.Linear], format: str) -> PackedLinear:
        """One linear layer, or several of the same input side by side."""
        weight = self(name, [m.weight for m in modules], format)
        if all(m.bias is None for m in modules):
            return PackedLinear(weight, None)
        dtype = modules[0].weight.dtype  # not new_zeros: a weight of integers alone has no device
        parts = [
            torch.zeros(len(m.weight), dtype=dtype) if m.bias is None else m.bias for m in modules
        ]
        return PackedLinear(weight, torch.cat([p.detach() for p in parts]))

    def convolution(self, name: str, module: PackedConv1d, format: str) -> PackedLinear:
        """A width-3 convolution over rows that were ``gathered``."""
        assert module.bias is not None
        weight = module.weight.detach().transpose(1, 2).flatten(1)
        return PackedLinear(self(name, [weight], format), module.bias.detach())


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer: packed weight, bias or None."""

    weight: ops.PackedWeight
    bias: Tensor | None

    def __call__(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        return ops.linear(x, self.weight, self.bias, activation=activation, residual=residual)


class PackedEncoder:
    """``AudioEncoder`` and the adaptor behind it; layer norms and RoTE stay the network's own."""

    def __init__(self, net: AudioLanguageModel, packing: Packing, format: str) -> None:
        encoder, adaptor = net.audio_tower, net.multi_modal_projector
        self.net = net
        self.conv1 = packing.convolution("encoder.conv1", encoder.conv1, format)
        self.conv2 = packing.convolution("encoder.conv2", encoder.conv2, format)
        layers = cast("list[EncoderLayer]", list(encoder.layers))
        self.layers = [
            _EncoderLayer(layer, packing, f"encoder.{i}", format) for i, layer in enumerate(layers)
        ]
        self.adaptor = [
            packing.linear("adaptor.1", [adaptor.linear_1], format),
            packing.linear("adaptor.2", [adaptor.linear_2], format),
        ]

    def __call__(self, audio: AudioBatch) -> Tensor:
        """Audio tokens of a batch, packed in its order: ``[audio.num_tokens, text hidden]``."""
        tokens = [self._adapt(self._encode(audio.features[p.frames], p), p) for p in audio.plans]
        if len(tokens) == 1:
            return tokens[0]
        width = self.adaptor[1].weight.n
        return torch.cat(tokens) if tokens else audio.features.new_zeros(0, width)

    def _encode(self, features: Tensor, plan: WindowPlan) -> Tensor:
        encoder = self.net.audio_tower
        hidden = self.conv1(gathered(features, plan.conv1).flatten(1), "gelu")
        positions = encoder.embed_positions.weight.index_select(0, plan.positions)
        hidden = self.conv2(gathered(hidden, plan.conv2).flatten(1), "gelu", residual=positions)
        for layer in self.layers:
            hidden = layer(hidden, plan.cu_seqlens)
        return _norm(encoder.layer_norm, hidden, plan.pooled)

    def _adapt(self, features: Tensor, plan: WindowPlan) -> Tensor:
        first, second = self.adaptor
        features = self.net.rote(features, plan.window_start, plan.token_index)
        return second(first(features, "gelu"))


class _EncoderLayer:
    def __init__(self, layer: EncoderLayer, packing: Packing, name: str, format: str) -> None:
        attention = layer.self_attn
        self.layer, self.head_dim = layer, attention.head_dim
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = packing.linear(f"{name}.qkv", projections, format)
        self.out = packing.linear(f"{name}.out", [attention.out_proj], format)
        self.fc1 = packing.linear(f"{name}.fc1", [layer.fc1], format)
        self.fc2 = packing.linear(f"{name}.fc2", [layer.fc2], format)

    def __call__(self, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        qkv = self.qkv(_norm(self.layer.self_attn_layer_norm, hidden))
        q, k, v = qkv.unflatten(-1, (3, -1, self.head_dim)).unbind(1)
        mixed, _ = ops.attention(q, k, v, cu_seqlens_q=cu_seqlens)
        hidden = self.out(mixed.flatten(1), residual=hidden)
        wide = self.fc1(_norm(self.layer.final_layer_norm, hidden), "gelu")
        return self.fc2(wide, residual=hidden)


class PackedDecoder:
    """``LanguageModel``: its layers, final norm and head; embeddings and norms stay its own."""

    def __init__(
        self,
        model: LanguageModel,
        config: TextConfig,
        packing: Packing,
        format: str,
        head_format: str,
    ) -> None:
        layers = cast("list[DecoderLayer]", list(model.model.layers))
        self.model = model
        self.layers = ops.Decoder(
            [
                _decoder_layer(layer, packing, f"decoder.{i}", format)
                for i, layer in enumerate(layers)
            ],
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
            inv_freq=model.model.inv_freq.values,
        )
        self.head = packing.linear("head", [model.lm_head], head_format)
        self.bytes_per_token = sum(layer.nbytes for layer in self.layers.layers)
        self.bytes_per_token += self.head.weight.nbytes + model.model.norm.weight.nbytes

    def logits(self, hidden: Tensor) -> Tensor:
        """``[T, vocab]`` of what the layers returned."""
        norm = self.model.model.norm
        return self.head(ops.rms_norm(hidden, norm.weight, norm.eps))


def _decoder_layer(
    layer: DecoderLayer, packing: Packing, name: str, format: str
) -> ops.DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    qkv = packing.linear(f"{name}.qkv", projections, format)
    gate_up = [mlp.gate_proj.weight, mlp.up_proj.weight]
    return ops.DecoderLayer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=qkv.weight,
        qkv_bias=qkv.bias,
        out=packing(f"{name}.out", [attention.o_proj.weight], format),
        post_attention_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=packing(f"{name}.gate_up", gate_up, format, gate_up=True),
        down=packing(f"{name}.down", [mlp.down_proj.weight], format),
    )


def _stacked(rows: Rows[Tensor], format: str) -> Tensor | ops.QuantizedWeight:
    """Weights one above the other: the integers that they carry where all have them in this format."""
    integers = kept_together(rows)
    if integers is not None and integers.format == format:
        return integers
    return rows[0].detach() if len(rows) == 1 else torch.cat([r.detach() for r in rows])


def _norm(module: nn.LayerNorm, x: Tensor, pooled: Tensor | None = None) -> Tensor:
    return ops.layer_norm(x, module.weight, module.bias, module.eps, pooled)


def can_pack(net: AudioLanguageModel) -> bool:
    """Whether every product is a plain layer of the model's: adapters and replaced modules are not."""
    device = net.language_model.model.embed_tokens.weight.device.type
    if device != "cpu" and not (device == "cuda" and runtime.has_cuda()):
        return False
    wanted = {nn.Linear: Linear, nn.Conv1d: PackedConv1d, nn.LayerNorm: LayerNorm}
    return all(
        type(module) is own
        for module in net.modules()
        for base, own in wanted.items()
        if isinstance(module, base)
    ) and not any("lora" in name for name, _ in net.named_parameters())
