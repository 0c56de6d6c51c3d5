"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank adapters on linear layers, over weights that rest.

Adapters are made with the network and stay to the end of a chain: until the first stage that trains them
begins they are left out, and a finished model has them merged. Beside it they are kept in PEFT's layout.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from afnext.model import AudioLanguageModel, adapter
from afnext.model.layers import Linear, linear
from afnext.training.config import LoraConfig, RecipeError, TrainConfig

A, B = adapter.PARTS
HEAD = "language_model.lm_head"


class LoraLinear(Linear):
    """A linear layer with weight W ``[N, K]`` that computes with W + (alpha / rank) B A: A ``[rank, K]``, B
    ``[N, rank]``. Weight and bias are those of ``base``, under their names.

    Attributes:
        active: False leaves the adapter out.
    """

    def __init__(self, base: nn.Linear, lora: LoraConfig, random: torch.Generator) -> None:
        n, k = base.weight.shape
        super().__init__(k, n, bias=False, device="meta")
        self.weight = base.weight
        self.bias = base.bias
        self.scale, self.dropout, self.active = lora.alpha / lora.rank, lora.dropout, True
        bound = 1 / math.sqrt(k)  # as PEFT draws A; B is zero, so that nothing changes at first
        a = torch.empty(lora.rank, k).uniform_(-bound, bound, generator=random)
        self.lora_A = nn.Parameter(a.to(base.weight))
        self.lora_B = nn.Parameter(base.weight.new_zeros(n, lora.rank))

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        if not self.active:
            return out
        if self.dropout:  # whatever the mode: nets are read in eval mode, and trained in it too
            input = F.dropout(input, self.dropout, training=torch.is_grad_enabled())
        return torch.add(out, linear(linear(input, self.lora_A), self.lora_B), alpha=self.scale)


def add_adapters(net: AudioLanguageModel, config: TrainConfig) -> None:
    """Put adapters on the linear layers that the chain's ``lora`` names, if it has one. The same on every
    process: they are drawn from the chain's seed.

    Raises:
        RecipeError: the pattern names no linear layer, or the head of a model that has it tied to its word
            embeddings; the rank is more than a layer's.
    """
    lora = config.lora
    if lora is None:
        return
    where = f"{next(stage.name for stage in config.stages if stage.lora)}: lora"
    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    chosen = {name: m for name, m in layers.items() if re.search(lora.targets, name)}
    if not chosen:
        one = next(name for name in layers if name.startswith("language_model."))
        raise RecipeError(f"{where}: targets {lora.targets!r} names no linear layer; {one} is one")
    if HEAD in chosen and net.config.text.tie_word_embeddings:
        raise RecipeError(f"{where}: targets {lora.targets!r} names {HEAD}, whose weight is tied")
    random = torch.Generator().manual_seed(config.seed)
    for name, base in chosen.items():
        if lora.rank > min(base.weight.shape):
            raise RecipeError(
                f"{where}: rank {lora.rank} is more than that of {name}, {list(base.weight.shape)}"
            )
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, LoraLinear(base, lora, random))


def activate(net: nn.Module, config: TrainConfig, stage: int) -> None:
    """Adapters count in a stage of a chain if it or one before it trains them."""
    active = any(s.lora for s in config.stages[: stage + 1])
    for module in net.modules():
        if isinstance(module, LoraLinear):
            module.active = active


def merged(weights: Mapping[str, Tensor], lora: LoraConfig | None) -> dict[str, Tensor]:
    """The weights of a network without adapters that computes the same."""
    made = {n: w for n, w in weights.items() if not n.endswith((A, B))}
    for name, a in weights.items():
        if name.endswith(A) and lora is not None:
            layer = name.removesuffix(A)
            weight = f"{layer}weight"
            made[weight] = adapter.merged(
                made[weight], a, weights[layer + B], lora.alpha / lora.rank
            )
    return made


def save_adapter(
    weights: Mapping[str, Tensor], lora: LoraConfig, folder: Path, base: str | None
) -> None:
    """Write the adapters among a network's ``weights`` as PEFT does, by the names of modules that
    transformers' classes have.

    Args:
        base: the model that they are over, where nothing else of it was trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors, targets = {}, []
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".")
        if kind in (A, B):
            module = in_transformers(layer)
            tensors[f"{adapter.PREFIX}{module}.{kind}.weight"] = value.cpu().contiguous()
            targets += [module] if kind == A else []
    save_file(tensors, folder / adapter.WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
        "target_modules": targets, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    (folder / adapter.CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def in_transformers(module: str) -> str:
    """A module's name in transformers' class for whole models."""
    if module.startswith("language_model.model."):
        return module.replace("language_model.model.", "model.language_model.", 1)
    return "lm_head" if module == HEAD else f"model.{module}"
