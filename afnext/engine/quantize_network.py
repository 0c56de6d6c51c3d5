"""A network whose linear layers carry integers, as ``afnext convert`` writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from afnext import ops
from afnext.model import AudioLanguageModel
from afnext.model.quantized import keep

from .calibrate import calibrated
from .packed import STORED, require_stored


@torch.no_grad()
def quantize_network(
    net: AudioLanguageModel,
    quantization: str,
    embeddings: Sequence[Tensor] = (),
    told: Callable[[float], None] = lambda share: None,
    *,
    integers_alone: bool = False,
) -> None:
    """Let every linear layer of ``net`` carry its integers; their values become those of the integers.

    Convolutions, embeddings and norms stay as they are. Weights that lie in a mapped file are read one after
    another, and take no memory.

    Args:
        net: on a CPU.
        quantization: one of ``STORED``; the formats of its parts are those of ``load``.
        embeddings: for int4, of whole conversations, each ``[T, hidden]``: the decoder's layers are then
            rounded for them; see ``calibrated``. By default each weight goes to the nearest value.
        told: the share of the calibration that is done.
        integers_alone: the layers' own weights have no values then; a model that is only to be saved needs
            none. Else they take as much memory as those of the whole model.

    Raises:
        ValueError: no such quantization, or one that is not calibrated.
    """
    require_stored(quantization)
    layers, head, encoder = STORED[quantization]
    if len(embeddings) and quantization != "int4":
        raise ValueError(f"calibrate: is for int4; {quantization} loses nothing that it could mend")
    done = {
        f"language_model.{name}": weight
        for name, weight in (
            calibrated(net.language_model, embeddings, told) if len(embeddings) else {}
        ).items()
    }
    modules = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    for name, module in modules:
        format = encoder if not name.startswith("language_model.") else layers
        if module is net.language_model.lm_head:
            format = head
        if format is None:
            continue
        weight = done.get(f"{name}.weight") or ops.quantize(module.weight, format)
        embedding = net.language_model.model.embed_tokens.weight
        if module.weight is not embedding:  # which is not rounded
            if integers_alone:
                empty = torch.empty_like(module.weight, device="meta")
                module.weight = nn.Parameter(empty, requires_grad=False)
            elif module is not net.language_model.lm_head:
                module.weight.data = weight.dequantize(module.weight.dtype)
        keep(module.weight, weight)
