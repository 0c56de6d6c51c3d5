"""What layers keep of their forward pass for backward, and what they compute again there."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from afnext.model import AudioLanguageModel
from afnext.training.config import Activations


def set_activations(net: AudioLanguageModel, activations: Activations) -> None:
    """Of the layers of encoder and decoder, from the next forward on.

    ``keep``: all that backward needs. ``recompute``: what goes into a layer; backward computes the layer
    again. ``selective``: that and the results of attention, whose work grows with the square of the length;
    the rest is computed again. Attention that processes share is computed again too: it adds up its results
    in place. Losses and gradients are the same.

    The forward of a layer is what is computed again, not the call: hooks of FSDP and others run once.
    """
    for layer in (*net.audio_tower.layers, *net.language_model.model.layers):
        vars(layer).pop("forward", None)
        if activations == "keep":
            continue
        how: dict[str, Any] = {"use_reentrant": False}
        if activations == "selective":
            how["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
        vars(layer)["forward"] = partial(checkpoint, layer.forward, **how)


def autocast(kind: str, bf16: bool, activations: Activations) -> torch.autocast:
    """bfloat16 on devices of a ``kind``, or nothing. Where layers are computed again weights in bfloat16 are
    not kept for the next call: they would be there for the whole of forward, and not in backward.
    """
    return torch.autocast(kind, torch.bfloat16, enabled=bf16, cache_enabled=activations == "keep")


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if op == torch.ops.afnext.attention.default:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
