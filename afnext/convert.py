"""Write a model folder anew: another dtype, other shards."""

from __future__ import annotations

import shutil
from pathlib import Path

from .errors import CheckpointError
from .hub import find_model

# What a folder holds besides config and weights, which are written anew.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def convert(model: str | Path, out: str | Path, *, dtype: str | None = None) -> Path:
    """Write a model in another dtype, with its tokenizer and templates.

    Args:
        model: "nano", a folder, or a Hugging Face id.
        out: a folder that does not exist yet, or is empty.
        dtype: "float32" or "bfloat16"; by default the model's own.

    Returns:
        ``out``, in the layout that transformers reads.

    Raises:
        CheckpointError: the model cannot be read, or ``out`` is in use.
        ValueError: an unknown dtype.
    """
    from .assistant import DTYPES
    from .chat.variants import detect_variant, mark_variant
    from .model import AudioLanguageModel
    from .model.checkpoint import read_json

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: must be one of {', '.join(DTYPES)}, got {dtype!r}")
    source, target = find_model(model), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists already; give a new folder")
    net = AudioLanguageModel.from_pretrained(source, dtype=DTYPES[dtype] if dtype else None)
    net.save_pretrained(target)
    mark_variant(target, detect_variant(source, read_json(source / "config.json")).name)
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return target
