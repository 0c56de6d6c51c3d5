"""Two layers of each part at the full width of the 7B release, against transformers in float32."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from afnext.model import AudioBatch, AudioLanguageModel
from afnext.model.info import geometry


def random_weights(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Uniform, of deviation 1.5 / sqrt(fan in); embeddings 1; norms about 1; biases 0.2."""
    generator = torch.Generator().manual_seed(0)
    out = {}
    for name, shape in shapes.items():
        fan_in = shape[1:].numel() if len(shape) > 1 and "embed" not in name else 1
        gain = (1.5 if len(shape) > 1 else 0.2) * 3**0.5 * fan_in**-0.5
        out[name] = torch.empty(shape).uniform_(-gain, gain, generator=generator)
        if "norm" in name and name.endswith("weight"):
            out[name] += 1
    return out


@pytest.mark.sweep
@torch.no_grad()
def test_full_width(tmp_path: Path, clip: Any, prompt: Any, their_features: Any) -> None:
    """2.3 GB of weights, mapped by both sides (the window axis is tested at small width)."""
    release = geometry("7b")
    config = replace(
        release,
        audio=replace(release.audio, num_hidden_layers=2),
        text=replace(release.text, num_hidden_layers=2, vocab_size=1000),
        audio_token_id=997,
        audio_bos_token_id=998,
        audio_eos_token_id=999,
    )
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in AudioLanguageModel(config).state_dict().items()}
    save_file(random_weights(shapes), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    windows = clip(8.0)
    ids = torch.tensor([prompt(windows)])
    theirs = transformers.MusicFlamingoForConditionalGeneration.from_pretrained(tmp_path).eval()
    expected = theirs(input_ids=ids, **their_features(windows)).logits
    del theirs
    gc.collect()
    ours = AudioLanguageModel.from_pretrained(tmp_path)
    got = ours(ids, AudioBatch.collate([windows]))
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
