"""Random checkpoints that transformers wrote, and the same audio for both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from afnext.audio.windows import WINDOW_SAMPLES, AudioWindow
from afnext.model import AudioLanguageModel

SOUND, BEGIN, END = 997, 998, 999
AUDIO = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 192,
}
TEXT = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_theta": 15_300_000.0,
}


class Pair(NamedTuple):
    """transformers' model, ours from the folder it saved, and that folder."""

    theirs: Any
    ours: AudioLanguageModel
    folder: Path


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights with gain, so that an error anywhere moves the logits and attention is not flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.add_(0.2 * noise)
            elif "embed" in name:
                p.copy_(noise)
            else:
                # The decoder's attention only nudges, or thousands of audio tokens drown the text.
                gain = 0.5 if "o_proj" in name else 1.5
                p.copy_(noise * gain * p[0].numel() ** -0.5)


def save_theirs(
    folder: Path, kind: str = "musicflamingo", seed: int = 0, **changes: dict[str, Any]
) -> Any:
    """A small random model of transformers, saved to ``folder``; returned in eval mode."""
    text = {**TEXT, **changes.get("text", {})}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
    parts = {
        "audio_config": {
            "model_type": "audioflamingo3_encoder",
            **AUDIO,
            **changes.get("audio", {}),
        },
        "text_config": {"model_type": "qwen2", **text},
        "audio_token_id": SOUND,
    }
    if kind == "musicflamingo":
        config = transformers.MusicFlamingoConfig(
            **parts, audio_bos_token_id=BEGIN, audio_eos_token_id=END
        )
        model = transformers.MusicFlamingoForConditionalGeneration(config)
    else:
        config = transformers.AudioFlamingo3Config(**parts)
        model = transformers.AudioFlamingo3ForConditionalGeneration(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="session", params=["musicflamingo", "audioflamingo3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Both model types, small."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = save_theirs(folder, request.param)
    return Pair(theirs, AudioLanguageModel.from_pretrained(folder), folder)


@pytest.fixture(scope="session")
def flamingo(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small ``musicflamingo``."""
    folder = tmp_path_factory.mktemp("flamingo")
    theirs = save_theirs(folder)
    return Pair(theirs, AudioLanguageModel.from_pretrained(folder), folder)


@pytest.fixture(scope="session")
def make_theirs() -> Callable[..., Any]:
    return save_theirs


def cut(samples: np.ndarray, recording: int = 0) -> list[AudioWindow]:
    """Non-overlapping windows of 30 s, the last one short."""
    starts = range(0, len(samples), WINDOW_SAMPLES)
    pieces = [(s, samples[s : s + WINDOW_SAMPLES]) for s in starts]
    return [AudioWindow(p, s, len(p), recording) for s, p in pieces]


@pytest.fixture(scope="session")
def clip() -> Callable[..., list[AudioWindow]]:
    """``clip(seconds, seed)``: windows of noise under a slow envelope and a gliding tone."""

    def make(seconds: float, seed: int = 0, recording: int = 0) -> list[AudioWindow]:
        rng = np.random.default_rng(seed)
        t = np.arange(round(seconds * 16_000)) / 16_000
        noise = rng.standard_normal(t.size) * (0.6 + 0.4 * np.sin(2 * np.pi * (0.3 + seed) * t))
        tone = np.sin(2 * np.pi * (200 + 50 * seed + 40 * t) * t)
        return cut((0.05 * noise + 0.2 * tone).astype(np.float32), recording)

    return make


@pytest.fixture(scope="session")
def their_features() -> Callable[[Sequence[AudioWindow]], dict[str, Tensor]]:
    """Padded log-mel features and mask of windows, by transformers' extractor."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=128)

    def extract(windows: Sequence[AudioWindow]) -> dict[str, Tensor]:
        out = extractor(
            [w.samples for w in windows],
            sampling_rate=16_000,
            return_tensors="pt",
            return_attention_mask=True,
        )
        return {
            "input_features": out["input_features"],
            "input_features_mask": out["attention_mask"],
        }

    return extract


@pytest.fixture(scope="session")
def prompt() -> Callable[..., list[int]]:
    """``prompt(windows, ...)``: text, then placeholders of each recording between its markers, text."""

    def make(*recordings: Sequence[AudioWindow], before: int = 5, after: int = 9) -> list[int]:
        rng = np.random.default_rng(before * 31 + after)
        ids = rng.integers(0, 990, before).tolist()
        for windows in recordings:
            ids += [BEGIN, *[SOUND] * sum(w.num_tokens for w in windows), END]
        return ids + rng.integers(0, 990, after).tolist()

    return make


@pytest.fixture(scope="session")
def left_pad() -> Callable[[Sequence[Sequence[int]]], tuple[Tensor, Tensor]]:
    """``input_ids`` and ``attention_mask`` of prompts, padded on the left."""

    def make(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        return ids, mask

    return make
