"""transformers' model about windows of audio, greedily, as far as it is asked to go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from afnext.audio.windows import AudioWindow

EXTRACTOR = WhisperFeatureExtractor(feature_size=128)


@torch.inference_mode()
def generate(
    model: Any,
    ids: Sequence[int],
    windows: Sequence[AudioWindow],
    count: int,
) -> Tensor:
    """Of a ``MusicFlamingoForConditionalGeneration``: the prompt and exactly ``count`` new tokens, int64
    ``[1, T + count]``; from samples to ids."""
    prompt = torch.tensor([list(ids)], device=model.device)
    features = EXTRACTOR(
        [w.samples for w in windows],
        sampling_rate=16_000,
        return_tensors="pt",
        return_attention_mask=True,
    )
    tokens: Tensor = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        input_features=features["input_features"].to(model.device, model.dtype),
        input_features_mask=features["attention_mask"].to(model.device),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
        eos_token_id=[],  # nothing ends an answer early
        pad_token_id=0,
    )
    return tokens
