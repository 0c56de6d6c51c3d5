"""transformers' Qwen2 on the tensors of a model of ours, one step at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from afnext.model import AudioLanguageModel


def qwen2(net: AudioLanguageModel) -> Qwen2ForCausalLM:
    """transformers' model with ``net``'s decoder weights, shared and not copied; sdpa attention."""
    sizes: dict[str, Any] = {**net.config.text.to_dict(), "attn_implementation": "sdpa"}
    config = Qwen2Config(**sizes, dtype=net.language_model.lm_head.weight.dtype)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model.load_state_dict(net.language_model.state_dict(), assign=True)
    # Its frequencies are no part of the weights, and so are still on the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


class Qwen2:
    """One step of a model, over and over: its cache goes back to its length after each.

    Args:
        model: as ``qwen2`` makes it, its linear layers perhaps replaced.
        ids: ``[T]``, the tokens of the step.
        keys, values: of each layer ``[1, Hkv, context, D]``, what the step finds.
    """

    def __init__(
        self, model: Qwen2ForCausalLM, ids: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> None:
        self.model, self.ids = model, ids[None]
        self.cache = DynamicCache(config=model.config)
        for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
            self.cache.update(k, v, layer)
        self.empty = self.cache.get_seq_length() == 0

    def __call__(self) -> Tensor:
        """Logits ``[vocab]`` of the last token."""
        cache = DynamicCache(config=self.model.config) if self.empty else self.cache
        output: Any = self.model(
            input_ids=self.ids, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        if not self.empty:
            cache.crop(-self.ids.shape[1])
        return output.logits[0, -1]
