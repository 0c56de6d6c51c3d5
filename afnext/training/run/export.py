"""The finished model as a folder that afnext and transformers load."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer

from afnext.chat.variants import detect_variant, mark_variant
from afnext.hub import copy_companions
from afnext.model import AudioLanguageModel
from afnext.model.checkpoint import read_json
from afnext.training.config import ModelShape
from afnext.training.data.tokenizer import save_tokenizer


def model_config(shape: ModelShape, tokenizer: Tokenizer) -> dict[str, Any]:
    """``config.json`` in the layout of transformers' ``musicflamingo``; RoTE as in the released model, unless
    ``shape`` wants another kind, which transformers does not know.
    """
    ids = tokenizer.get_vocab()
    other_rote = {} if shape.rote == "axial" else {"rote": {"kind": shape.rote}}
    return {
        "architectures": ["MusicFlamingoForConditionalGeneration"],
        "model_type": "musicflamingo",
        "audio_token_id": ids["<sound>"],
        "audio_bos_token_id": ids["<|sound_bos|>"],
        "audio_eos_token_id": ids["<|sound_eos|>"],
        "audio_frame_step": 0.01,
        "projector_hidden_act": "gelu",
        "projector_bias": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1200.0,
            "partial_rotary_factor": 0.2,
        },
        **other_rote,
        "audio_config": {
            "model_type": "audioflamingo3_encoder",
            "hidden_size": shape.audio_width,
            "num_hidden_layers": shape.audio_layers,
            "num_attention_heads": shape.audio_heads,
            "intermediate_size": shape.audio_ffn,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
            "activation_function": "gelu",
        },
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "intermediate_size": shape.ffn,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
            "max_position_embeddings": shape.max_positions,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Where to write what is to be in ``folder``: a new one appears when it is whole, or not at all."""
    if folder.exists():
        yield folder
        return
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        made = Path(beside) / folder.name
        made.mkdir()
        yield made
        made.rename(folder)


def save_model(
    net: AudioLanguageModel, init: Path | None, tokenizer: Tokenizer, folder: Path, dtype: str
) -> Path:
    """Write a network as a model's folder, which it gives; with what stands beside the weights of the model
    ``init`` that it began with, or where it began with none with ``tokenizer``.
    """
    with appearing(folder) as made:
        if init is None:
            export(net, tokenizer, made, dtype)
        else:
            save(net, made, dtype)
            copy_companions(init, made)
            mark_variant(made, detect_variant(init, read_json(init / "config.json")).name)
    return folder


def save(net: AudioLanguageModel, folder: Path, dtype: str) -> None:
    """Write weights and config into ``folder``; the net stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(net).to(getattr(torch, dtype)).save_pretrained(folder)


def export(net: AudioLanguageModel, tokenizer: Tokenizer, folder: Path, dtype: str) -> None:
    """Write weights, config, generation config and tokenizer of a model trained from nothing."""
    save(net, folder, dtype)
    mark_variant(folder, "nano")
    ids = tokenizer.get_vocab()
    generation = {
        "max_new_tokens": 256,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "do_sample": False,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, folder)
