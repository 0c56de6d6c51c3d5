"""A network whose linear layers carry integers, as ``afnext convert`` writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from afnext import ops
from afnext.model import AudioLanguageModel
from afnext.model.quantized import keep

from .calibrate import calibrated
from .packed import FORMATS, require_quantization


@torch.no_grad()
def quantize_network(
    net: AudioLanguageModel,
    quantization: str,
    embeddings: Sequence[Tensor] = (),
    told: Callable[[float], None] = lambda share: None,
) -> None:
    """Let every linear layer of ``net`` carry its integers; their values become those of the integers.

    Convolutions, embeddings and norms stay as they are.

    Args:
        net: on a CPU.
        quantization: "int8" or "int4"; the formats of its parts are those of ``load``.
        embeddings: for int4, of whole conversations, each ``[T, hidden]``: the decoder's layers are then
            rounded for them; see ``calibrated``. By default each weight goes to the nearest value.
        told: the share of the calibration that is done.

    Raises:
        ValueError: no such quantization, or one that is not calibrated.
    """
    require_quantization(quantization)
    layers, head, encoder = FORMATS[quantization]
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
        weight = done.get(f"{name}.weight") or ops.quantize(module.weight, format)
        # The head may be the embeddings, which are not rounded.
        if module is not net.language_model.lm_head:
            module.weight.data = weight.dequantize(module.weight.dtype)
        keep(module.weight, weight)
