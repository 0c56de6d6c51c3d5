"""Two layers of each part at the full width of the 7B release, against transformers in float32."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from afnext.model import AudioBatch, AudioLanguageModel

AUDIO = {"hidden_size": 1280, "num_attention_heads": 20, "intermediate_size": 5120}
TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
}


@pytest.mark.slow
@torch.no_grad()
def test_full_width(
    make_theirs: Any, tmp_path: Path, clip: Any, prompt: Any, their_features: Any
) -> None:
    """2.2 GB of weights, one copy beside the mapped file; a clip of two windows."""
    windows = clip(33.0)
    ids = torch.tensor([prompt(windows)])
    theirs = make_theirs(tmp_path, audio=AUDIO, text=TEXT)
    expected = theirs(input_ids=ids, **their_features(windows)).logits
    del theirs
    gc.collect()
    ours = AudioLanguageModel.from_pretrained(tmp_path)
    got = ours(ids, AudioBatch.collate([windows]))
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
