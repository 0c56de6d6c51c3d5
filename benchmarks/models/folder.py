"""A model folder in the published layout, of random weights, larger than memory if need be."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SHARD_BYTES = 5_000_000_000
BLOCK = 1 << 24  # random numbers that all weights are made of


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file to be: its name, its shape and where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    start: int
    end: int


def write_folder(folder: Path, config: Any) -> None:
    """A model folder in the published layout with random bfloat16 weights, written as a stream.

    The tokenizer and the chat template are nano's, the audio tokens the ones that it knows.
    """
    import torch

    from afnext.hub import find_model
    from afnext.model import AudioLanguageModel, ModelConfig

    nano = find_model("nano")
    known = ModelConfig.from_folder(nano)
    config = replace(
        config,
        audio_token_id=known.audio_token_id,
        audio_bos_token_id=known.audio_bos_token_id,
        audio_eos_token_id=known.audio_eos_token_id,
        dtype="bfloat16",
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(nano / file, folder / file)
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in AudioLanguageModel(config).state_dict().items()}
    files = _layout(shapes)
    generator = torch.Generator().manual_seed(0)
    block = torch.empty(BLOCK).normal_(0.0, 0.02, generator=generator).bfloat16()
    weights = block.view(torch.int16).numpy().tobytes()
    ones = torch.ones(1, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes()
    for name, tensors in files.items():
        _write_file(folder / name, tensors, weights, ones)
    index = {"metadata": {}, "weight_map": {t.name: f for f, ts in files.items() for t in ts}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    # Last, as it makes the folder a whole one.
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2))


def _layout(shapes: dict[str, tuple[int, ...]]) -> dict[str, list[Tensor]]:
    """Tensors in their order, by file."""
    files: list[list[Tensor]] = [[]]
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        start = files[-1][-1].end if files[-1] else 0
        if files[-1] and start + size > SHARD_BYTES:
            files.append([])
            start = 0
        files[-1].append(Tensor(name, shape, start, start + size))
    return {f"model-{i + 1:05d}-of-{len(files):05d}.safetensors": f for i, f in enumerate(files)}


def _write_file(path: Path, tensors: list[Tensor], weights: bytes, ones: bytes) -> None:
    """One safetensors file: the length of its header, the header, and bytes."""
    header = {
        t.name: {"dtype": "BF16", "shape": t.shape, "data_offsets": [t.start, t.end]}
        for t in tensors
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 64 + 56)  # so that weights begin at a multiple of 64
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for number, tensor in enumerate(tensors):
            left = tensor.end - tensor.start
            norm = re.search(r"norm\.weight$", tensor.name) is not None
            at = number * 4096 % len(weights)
            while left:
                piece = ones * (left // 2) if norm else weights[at : at + left]
                file.write(piece)
                left -= len(piece)
                at = 0
