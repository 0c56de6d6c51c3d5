"""A folder's weights are those that were written, to the bit, or the tensor is named that is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from afnext.convert import convert
from afnext.errors import CheckpointError
from afnext.hub import EMBEDDED, find_model
from afnext.model import AudioLanguageModel
from afnext.model.digests import NAME, digests, verify


@pytest.fixture(scope="module")
def net() -> AudioLanguageModel:
    return AudioLanguageModel.from_pretrained(find_model("nano"))


def flip(file: Path, name: str) -> None:
    """A bit in the middle of a tensor."""
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + size])[name]["data_offsets"]
    data[8 + size + (begin + end) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("shard_bytes", [1 << 40, 4_000_000])
def test_a_bit_that_flipped_is_found(
    net: AudioLanguageModel, tmp_path: Path, shard_bytes: int
) -> None:
    net.save_pretrained(tmp_path, max_shard_bytes=shard_bytes)
    tensors = {n: t for f in tmp_path.glob("*.safetensors") for n, t in load_file(f).items()}
    told: list[float] = []
    size = sum(t.nbytes for t in tensors.values())
    assert verify(tmp_path, lambda what, share: told.append(share)) == (len(tensors), size)
    assert len(told) == len(list(tmp_path.glob("*.safetensors")))
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    file = next(f for f in tmp_path.glob("*.safetensors") if name in load_file(f))
    flip(file, name)
    AudioLanguageModel.from_pretrained(tmp_path)  # loads as if nothing had happened
    with pytest.raises(CheckpointError, match=f"^[^ ]*: {name} differ from what was written$"):
        verify(tmp_path)


def test_integers_are_checked_as_well(tmp_path: Path) -> None:
    folder = convert("nano", tmp_path / "int4", quantization="int4")
    verify(folder)
    name = "language_model.model.layers.0.self_attn.q_proj.weight.scales"
    flip(folder / "model.safetensors", name)
    with pytest.raises(CheckpointError, match=f"{name} differ"):
        verify(folder)


def test_what_is_missing_and_what_is_unknown_is_named(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(3),
        "b": torch.tensor(1.0),
        "c": torch.zeros(0),
        "d": torch.ones(2).half(),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"has no digests\.json"):
        verify(tmp_path)
    wanted = digests(tensors)
    document = {"algorithm": "blake2b-128", "tensors": wanted}
    (tmp_path / NAME).write_text(json.dumps(document))
    assert verify(tmp_path) == (4, 20)
    document["tensors"] = {"e" if n == "a" else n: d for n, d in wanted.items()}
    (tmp_path / NAME).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"e are missing; a are not in digests\.json"):
        verify(tmp_path)
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cut short"):
        verify(tmp_path)
    (tmp_path / NAME).write_text('{"algorithm": "md5", "tensors": {}}')
    with pytest.raises(CheckpointError, match="by md5"):
        verify(tmp_path)


def test_the_model_in_the_package_is_as_it_was_written() -> None:
    count, size = verify(EMBEDDED["nano"])
    assert count > 100
    assert size > 15e6
