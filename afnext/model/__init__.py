"""The model: encoder, rotary time embedding, adaptor, decoder, and their checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import AudioConfig, ModelConfig, RoteConfig, TextConfig

if TYPE_CHECKING:
    from .audio_batch import AudioBatch
    from .audio_language_model import AudioLanguageModel
    from .decoder import DecoderOutput

__all__ = [
    "AudioBatch",
    "AudioConfig",
    "AudioLanguageModel",
    "DecoderOutput",
    "ModelConfig",
    "RoteConfig",
    "TextConfig",
]

_HOMES = {
    "AudioBatch": "audio_batch",
    "AudioLanguageModel": "audio_language_model",
    "DecoderOutput": "decoder",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
