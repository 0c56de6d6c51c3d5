"""Geometry is read as transformers writes it, written so that transformers reads it, and bounded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from afnext.errors import CheckpointError
from afnext.model import ModelConfig
from afnext.model.info import geometry


def test_reads_what_transformers_wrote(pair: Any) -> None:
    config, theirs = ModelConfig.from_folder(pair.folder), pair.theirs.config
    assert config.model_type == theirs.model_type
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(config.audio, name) == getattr(theirs.audio_config, name)
        assert getattr(config.text, name) == getattr(theirs.text_config, name)
    assert config.text.num_key_value_heads == 2
    assert config.text.rope_theta == 15_300_000.0
    assert config.audio_token_id == theirs.audio_token_id
    assert config.rote.kind == ("axial" if config.model_type == "musicflamingo" else "none")


@pytest.mark.parametrize("kind", ["axial", "time", "none"])
def test_round_trip(pair: Any, kind: str) -> None:
    data = json.loads((pair.folder / "config.json").read_text())
    if data["model_type"] == "musicflamingo":
        data["rote"] = {"kind": kind, "window_factor": 2.5, "max_position": 900.0}
    config = ModelConfig.from_dict(data)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_transformers_reads_ours(tmp_path: Path) -> None:
    """The release's geometry, through our writer and transformers' reader."""
    config = geometry("7b")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "MusicFlamingoConfig"
    assert theirs.rope_parameters["rope_theta"] == 1200.0
    assert theirs.rope_parameters["partial_rotary_factor"] == 0.2
    assert theirs.text_config.rope_parameters["rope_theta"] == 15.3e6
    assert (theirs.text_config.vocab_size, theirs.text_config.num_key_value_heads) == (151672, 4)
    assert theirs.audio_config.to_dict() == (
        transformers.MusicFlamingoConfig().audio_config.to_dict()
        | {"_name_or_path": theirs.audio_config._name_or_path}
    )


def test_older_layout() -> None:
    """``rope_theta`` beside the rest, ``torch_dtype``, Music Flamingo's name for its encoder."""
    config = ModelConfig.from_dict(
        {
            "model_type": "musicflamingo",
            "torch_dtype": "bfloat16",
            "audio_config": {"model_type": "musicflamingo_encoder"},
            "text_config": {
                "rope_theta": 1e6,
                "rope_scaling": {"type": "linear", "factor": 4.0},
                "num_key_value_heads": None,
            },
        }
    )
    assert config.text.rope_theta == 1e6
    assert config.text.rope_scale == 4.0
    assert config.text.num_key_value_heads == config.text.num_attention_heads
    assert config.dtype == "bfloat16"


IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("model_type", "llama", "model_type"),
    ("text_config.num_attention_heads", 3, "num_attention_heads"),
    ("text_config.num_key_value_heads", 3, "num_key_value_heads"),
    ("audio_config.num_attention_heads", 3, "audio_config.num_attention_heads"),
    ("text_config.num_hidden_layers", 0, "text_config.num_hidden_layers"),
    ("audio_config.num_hidden_layers", 0, "audio_config.num_hidden_layers"),
    ("text_config.hidden_size", -256, "text_config.hidden_size"),
    ("text_config.hidden_size", 10**12, "text_config.hidden_size"),
    ("text_config.num_hidden_layers", 10**12, "text_config.num_hidden_layers"),
    ("text_config.intermediate_size", 320.0, "text_config.intermediate_size"),
    ("text_config.vocab_size", "many", "text_config.vocab_size"),
    ("text_config.vocab_size", True, "text_config.vocab_size"),
    ("text_config.vocab_size", 10, "audio_"),
    ("text_config.head_dim", 63, "num_attention_heads"),
    ("text_config.rms_norm_eps", float("nan"), "rms_norm_eps"),
    ("text_config.rope_parameters", {"rope_type": "yarn"}, "rope_type"),
    ("text_config.rope_parameters", {"rope_theta": -1.0}, "rope_theta"),
    ("text_config.rope_parameters", [1], "rope_parameters"),
    ("text_config.use_sliding_window", True, "use_sliding_window"),
    ("text_config.hidden_act", "relu", "hidden_act"),
    ("text_config.eos_token_id", "stop", "eos_token_id"),
    ("text_config", 7, "text_config"),
    ("audio_config.num_mel_bins", 80, "num_mel_bins"),
    ("audio_config.max_source_positions", 1 << 40, "max_source_positions"),
    ("audio_token_id", -1, "audio_token_id"),
    ("rope_parameters", {"rope_theta": 0.0}, "rope_theta"),
    ("rope_parameters", {"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
    ("rote", {"kind": "spiral"}, "rote.kind"),
    ("audio_frame_step", 0.0, "audio_frame_step"),
]


@pytest.mark.parametrize(("key", "value", "named"), IMPOSSIBLE)
def test_impossible_geometry_is_one_clear_line(
    flamingo: Any, key: str, value: Any, named: str
) -> None:
    data = copy.deepcopy(json.loads((flamingo.folder / "config.json").read_text()))
    *sections, last = key.split(".")
    target = data
    for section in sections:
        target = target[section]
    target[last] = value
    with pytest.raises(CheckpointError) as raised:
        ModelConfig.from_dict(data)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=JSON | st.just(10**400) | st.just(-(10**400)))
def test_any_value_anywhere(data: st.DataObject, value: Any) -> None:
    """Whatever stands under a key, the config is read or refused by ``CheckpointError``."""
    config = geometry("7b").to_dict()
    target = config
    for section in data.draw(
        st.sampled_from(
            [(), ("text_config",), ("audio_config",), ("text_config", "rope_parameters")]
        )
    ):
        target = target[section]
    target[data.draw(st.sampled_from(sorted({*target, "rote", "head_dim"})))] = value
    try:
        read = ModelConfig.from_dict(config)
    except CheckpointError:
        return
    assert ModelConfig.from_dict(json.loads(json.dumps(read.to_dict()))) == read


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000, "\x00", '{"a": 1}'])
def test_broken_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError):
        ModelConfig.from_folder(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        ModelConfig.from_folder(tmp_path)
