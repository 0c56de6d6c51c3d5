"""A decoder's weights in four bits, each layer rounded for the inputs that it really gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from afnext.model.decoder import DecoderLayer, LanguageModel
from afnext.ops.quantize import QuantizedWeight

from .gptq import InputStatistics, Rounding

# Layers that share their input, in the order in which a block runs them.
_TOGETHER = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


@torch.no_grad()
def calibrated(
    model: LanguageModel,
    embeddings: Sequence[Tensor],
    told: Callable[[float], None] = lambda share: None,
) -> dict[str, QuantizedWeight]:
    """Round the decoder's layers, each after those before it, so that it sees what they made of the input.

    ``model`` is left with the weights that the integers stand for.

    Args:
        model: its layers, on a CPU.
        embeddings: of whole conversations, each ``[T, hidden]``: prompts with their audio, and answers.
        told: the share of the work that is done.

    Returns:
        By the layers' names in ``model``.

    Raises:
        ValueError: no embeddings.
    """
    if not embeddings:
        raise ValueError("calibration: needs a recording at least")
    lengths = tuple(len(e) for e in embeddings)
    positions = torch.cat([torch.arange(n) for n in lengths])
    hidden = torch.cat(list(embeddings))
    found: dict[str, QuantizedWeight] = {}
    layers = cast("list[DecoderLayer]", list(model.model.layers))
    for index, layer in enumerate(layers):

        def run(layer: DecoderLayer = layer, hidden: Tensor = hidden) -> Tensor:
            return layer(hidden, model.packed(lengths, positions))

        for names in _TOGETHER:
            # Anew for each group: the second sees what the rounding of the first has done.
            rounding = Rounding(_moments(layer.get_submodule(names[0]), run))
            for name in names:
                linear = cast("nn.Linear", layer.get_submodule(name))
                weight = rounding(linear.weight)
                linear.weight.data = weight.dequantize(linear.weight.dtype)
                found[f"model.layers.{index}.{name}.weight"] = weight
        hidden = run()
        told((index + 1) / len(layers))
    return found


def _moments(module: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """Of a linear layer's input while ``run`` runs."""
    statistics = InputStatistics(cast("nn.Linear", module).in_features)

    def keep(statistics: InputStatistics, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        statistics.add(args[0])

    hook = module.register_forward_pre_hook(partial(keep, statistics))
    try:
        run()
    finally:
        hook.remove()
    return statistics.moments
