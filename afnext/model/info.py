"""What a model weighs, without allocating it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from afnext.errors import CheckpointError

from .config import ModelConfig, TextConfig

BYTES = {"float32": 4, "bfloat16": 2}

GEOMETRIES = {
    # AF-Next as released: Qwen2.5-7B under AF-Whisper.
    "7b": ModelConfig(
        text=TextConfig(
            vocab_size=151672,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            head_dim=128,
            rope_theta=15.3e6,
            max_position_embeddings=131072,
        )
    ),
}


def geometry(name: str) -> ModelConfig:
    """A known geometry by name (``7b``)."""
    if name not in GEOMETRIES:
        raise CheckpointError(f"unknown geometry {name!r}; known: {', '.join(GEOMETRIES)}")
    return GEOMETRIES[name]


@dataclass(frozen=True)
class ModelInfo:
    """Sizes that follow from a geometry.

    Attributes:
        parameters: of the whole model; tied weights count once.
        tensors: how many weight tensors hold them.
        parts: parameters of the encoder, adaptor, decoder and head.
        weight_bytes: by dtype.
        kv_bytes_per_token: by dtype, of the decoder's key and value cache.
        audio_tokens_per_minute: that a minute of audio costs.
        max_positions: tokens of context the decoder was made for.
    """

    parameters: int
    tensors: int
    parts: dict[str, int]
    weight_bytes: dict[str, int]
    kv_bytes_per_token: dict[str, int]
    audio_tokens_per_minute: int
    max_positions: int

    @classmethod
    def of(cls, config: ModelConfig) -> ModelInfo:
        """Count on torch's meta device: shapes without memory."""
        import torch

        from .audio_language_model import AudioLanguageModel

        with torch.device("meta"):
            model = AudioLanguageModel(config)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        total = sum(sizes.values())
        prefixes = {
            "encoder": "audio_tower.",
            "adaptor": "multi_modal_projector.",
            "decoder": "language_model.model.",
            "head": "language_model.lm_head.",
        }
        text = config.text
        cached = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        return cls(
            parameters=total,
            tensors=len(sizes),
            parts={
                part: sum(n for name, n in sizes.items() if name.startswith(prefix))
                for part, prefix in prefixes.items()
            },
            weight_bytes={dtype: total * size for dtype, size in BYTES.items()},
            kv_bytes_per_token={dtype: cached * size for dtype, size in BYTES.items()},
            audio_tokens_per_minute=round(60 / config.rote.token_seconds),
            max_positions=text.max_position_embeddings,
        )

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return dict(vars(self))
