"""A tiny random model with nano's tokenizer, and a few held-out recordings without real voices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from afnext.chat.variants import mark_variant
from afnext.evaluation.held_out import GROUPS, Group, HeldOut, write
from afnext.hub import EMBEDDED
from afnext.model import AudioLanguageModel
from afnext.model.config import ModelConfig
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.dataset import SceneSet


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copytree(EMBEDDED["nano"], folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "intermediate_size": 48,
    }  # fmt: skip
    config["audio_config"] |= {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
    }  # fmt: skip
    torch.manual_seed(0)
    net = AudioLanguageModel(ModelConfig.from_dict(config))
    with torch.no_grad():  # so that what is heard and asked decides what is said
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.normal_(0, 1.5 * parameter[0].numel() ** -0.5)
    net.save_pretrained(folder)
    mark_variant(folder, "nano")  # greedy, without penalties
    return folder


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory, banks: Banks, held_out_banks: Banks) -> HeldOut:
    """Every group with two or three recordings, the long ones short."""
    folder = tmp_path_factory.mktemp("held-out-recordings")
    groups = {name: _smaller(name, group) for name, group in GROUPS.items()}
    list(write(folder, {"held-out": held_out_banks, "known voices": banks}, groups))
    return HeldOut(folder)


def _smaller(name: str, group: Group) -> Group:
    scenes = group.scenes
    count = 24 if name == "brief sounds" else 3
    longest = min(scenes.longest, 14.0)
    return Group(SceneSet(scenes.kind, count, min(scenes.shortest, longest), longest), group.split)
