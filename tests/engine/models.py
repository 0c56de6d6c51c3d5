"""A small model whose next token depends on everything before it, and what the whole of it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch

from afnext.audio import AudioWindow
from afnext.engine import Engine
from afnext.engine.gpu_model import GpuModel
from afnext.model import AudioBatch, AudioLanguageModel, ModelConfig

SOUND = 61
VOCABULARY = 64


def small_model(
    seed: int = 3, text: Mapping[str, int] = MappingProxyType({})
) -> AudioLanguageModel:
    """Random weights; ``text`` changes the decoder's geometry."""
    config = ModelConfig.from_dict(
        {
            "model_type": "musicflamingo",
            "audio_token_id": SOUND,
            "audio_bos_token_id": 59,
            "audio_eos_token_id": 60,
            "audio_config": {
                "hidden_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 64,
            },
            "text_config": {
                "vocab_size": VOCABULARY,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                **text,
            },
        }
    )
    torch.manual_seed(seed)
    model = AudioLanguageModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and "positions" not in name:
                p.normal_(0, 1.5 * p[0].numel() ** -0.5)
    return model


def window(seconds: float, seed: int = 0, start: float = 0.0) -> AudioWindow:
    """Noise that begins ``start`` seconds into its recording."""
    samples = np.random.default_rng(seed).standard_normal(int(seconds * 16_000)).astype(np.float32)
    return AudioWindow(samples * 0.1, int(start * 16_000), len(samples))


def heard(windows: Sequence[AudioWindow], *texts: Sequence[int]) -> list[int]:
    """A prompt: text, a window, text, a window, ..., text."""
    ids = list(texts[0])
    for one, text in zip(windows, texts[1:], strict=True):
        ids += [SOUND] * one.num_tokens + list(text)
    return ids


def recomputed(
    net: AudioLanguageModel, ids: Sequence[int], windows: Sequence[AudioWindow], count: int
) -> list[int]:
    """Greedy tokens of the full forward, over the whole sequence each time."""
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            logits = net(torch.tensor([ids]), AudioBatch.collate([list(windows)]))
        ids.append(int(logits[0, -1].argmax()))
    return ids[-count:]


def as_on_a_gpu(engine: Engine) -> Engine:
    """An engine whose runner takes a GPU's way on the CPU; nothing is captured there."""
    runner = engine.runner
    runner._packed, runner._gpu = None, GpuModel(runner.net, runner.quantization)
    runner.refresh = lambda: False  # type: ignore[method-assign]
    return engine
