"""LoRA adapters in PEFT's layout (Hu et al. 2021, arXiv 2106.09685), merged into a network's weights.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``: of each layer A ``[rank, K]`` and B
``[N, rank]``, named ``base_model.model.MODULE.lora_A.weight`` after modules of the class that was adapted:
transformers' (of either release) or ours.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from afnext.errors import CheckpointError

from . import quantized
from .checkpoint import canonical_name, read_json
from .config import ADAPTER_FILES

if TYPE_CHECKING:
    from .audio_language_model import AudioLanguageModel

CONFIG, WEIGHTS = ADAPTER_FILES
PREFIX = "base_model.model."
PARTS = ("lora_A", "lora_B")
# What PEFT can do beside W + scale B A, as a config says that it was not done.
USUAL: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),  # others change W itself
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    **dict.fromkeys(
        (
            "use_dora", "lora_bias", "fan_in_fan_out", "trainable_token_indices", "layer_replication",
            "alora_invocation_tokens", "use_qalora", "use_bdlora", "velora_config", "monteclora_config",
            "arrow_config", "kasa_config",
        ),
        (None, False),
    ),
}  # fmt: skip


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``weight + scale b a``, summed in float32 and rounded once, in the weight's dtype and device."""
    a, b = a.to(weight.device, torch.float32), b.to(weight.device, torch.float32)
    return torch.addmm(weight.float(), b, a, alpha=scale).to(weight.dtype)


def files_of(folder: str | Path) -> list[Path]:
    """The files of an adapter that decide what it computes.

    Raises:
        CheckpointError: one of them is missing.
    """
    folder = Path(folder)
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"adapter {folder}: no {name}")
    return [folder / CONFIG, folder / WEIGHTS]


@torch.no_grad()
def merge_adapter(net: AudioLanguageModel, folder: str | Path) -> None:
    """Add a LoRA adapter to the weights of ``net`` for good; layers that it changes take memory of their own.

    Nothing is changed where anything does not fit.

    Args:
        net: the network that the adapter was trained over.
        folder: as PEFT's ``save_pretrained`` writes it, and ``afnext train`` under ``adapter``.

    Raises:
        CheckpointError: the folder is incomplete or corrupt, is not LoRA on linear layers alone, or is of
            another geometry; or ``net`` holds a layer as integers.
    """
    folder = Path(folder)
    config_file, weights_file = files_of(folder)
    config = read_json(config_file) or {}
    _require_known(config, config_file)
    try:
        tensors = load_file(weights_file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{weights_file}: cannot be read ({error})") from None
    tensors = _without_copies(tensors, net, weights_file)
    layers = _by_layer(tensors, weights_file)
    modules = {f"{n}.weight": m for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    made = {}
    for module, (a, b) in layers.items():
        layer = modules.get(canonical_name(f"{module}.weight"))
        if layer is None:
            raise CheckpointError(f"adapter {folder}: the model has no linear layer {module}")
        n, k = layer.weight.shape
        rank = a.shape[0] if a.dim() == 2 else 0
        if not rank or a.shape != (rank, k) or b.shape != (n, rank):
            raise CheckpointError(
                f"adapter {folder}: {module} has A {list(a.shape)} and B {list(b.shape)}; the model's "
                f"layer, [{n}, {k}], needs [rank, {k}] and [{n}, rank]"
            )
        if layer.weight.is_meta or quantized.kept(layer.weight) is not None:
            raise CheckpointError(
                f"adapter {folder}: the model holds {module} as integers; load the one that it was made from"
            )
        head, embeddings = net.language_model.lm_head, net.language_model.model.embed_tokens
        if layer is head and layer.weight is embeddings.weight:
            raise CheckpointError(
                f"adapter {folder}: changes {module}, whose weight is that of the embeddings"
            )
        made[layer] = a, b, _scale(config, module, rank, config_file)
    for layer, (a, b, scale) in made.items():
        weight = merged(layer.weight, a, b, scale)
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)


def _require_known(config: dict[str, Any], file: Path) -> None:
    if (kind := config.get("peft_type")) != "LORA":
        raise CheckpointError(f"{file}: peft_type must be LORA, got {kind!r}")
    for key, usual in USUAL.items():
        if (value := config.get(key)) not in usual:
            raise CheckpointError(f"{file}: {key} {value!r} is not supported")


def _without_copies(
    tensors: dict[str, Tensor], net: AudioLanguageModel, file: Path
) -> dict[str, Tensor]:
    """PEFT writes embeddings and head too where adapters are over them: those must be the network's."""
    own, left = net.state_dict(), {}
    for name, tensor in tensors.items():
        weight = own.get(canonical_name(name.removeprefix(PREFIX).replace(".base_layer.", ".")))
        if weight is None:
            left[name] = tensor
        elif not _same(tensor, weight):
            raise CheckpointError(f"{file}: {name} is not what the model has there")
    return left


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two are equal in the narrower of their dtypes."""
    dtype = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return a.shape == b.shape and torch.equal(a.to(b.device, dtype), b.to(dtype))


def _by_layer(tensors: dict[str, Tensor], file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the name of the module that they are over."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if part not in PARTS or not name.startswith(PREFIX):
            raise CheckpointError(f"{file}: {name} is not LoRA's of a linear layer")
        found.setdefault(module, {})[part] = tensor
    for module, parts in found.items():
        if missing := set(PARTS) - parts.keys():
            raise CheckpointError(f"{file}: {module} lacks {missing.pop()}")
    if not found:
        raise CheckpointError(f"{file}: holds no adapter")
    return {module: (parts["lora_A"], parts["lora_B"]) for module, parts in found.items()}


def _scale(config: dict[str, Any], module: str, rank: int, file: Path) -> float:
    """alpha / rank, or of rank-stabilised LoRA (arXiv 2312.03732) alpha / sqrt(rank)."""
    alpha = config.get("lora_alpha")
    for pattern, other in (config.get("alpha_pattern") or {}).items():
        try:  # as PEFT reads them: a pattern is of the end of a module's name
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise CheckpointError(
                f"{file}: alpha_pattern {pattern!r} is no pattern ({error})"
            ) from None
        if matches:
            alpha = other
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{file}: lora_alpha must be a number, got {alpha!r}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
