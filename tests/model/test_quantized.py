"""Folders that hold integers: what is written is what is read, and what the engine multiplies by."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from afnext import ops
from afnext.engine.packed import PackedModel, can_pack, stored_quantization
from afnext.engine.quantize_network import quantize_network
from afnext.errors import CheckpointError
from afnext.hub import find_model
from afnext.model import AudioLanguageModel
from afnext.model.checkpoint import Weights
from afnext.model.quantized import kept, kept_in

pytestmark = pytest.mark.slow

LAYER = "language_model.model.layers.0.mlp.down_proj.weight"
HEAD = "language_model.lm_head.weight"


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantization(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(quantization: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = AudioLanguageModel.from_pretrained(find_model("nano"))
    quantize_network(net, quantization)
    out = tmp_path_factory.mktemp("folders") / quantization
    net.save_pretrained(out)
    return out


def test_integers_alone_are_saved_as_with_values(
    folder: Path, quantization: str, tmp_path: Path
) -> None:
    net = AudioLanguageModel.from_pretrained(find_model("nano"))
    quantize_network(net, quantization, integers_alone=True)
    tied = net.language_model.lm_head.weight is net.language_model.model.embed_tokens.weight
    weights = {n: m.weight for n, m in net.named_modules() if isinstance(m, torch.nn.Linear)}
    assert all(
        w.is_meta for n, w in weights.items() if not (tied and n == "language_model.lm_head")
    )
    net.save_pretrained(tmp_path / "out")
    found, wanted = (load_file(d / "model.safetensors") for d in (tmp_path / "out", folder))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(t, wanted[n]) for n, t in found.items())


def test_a_part_is_read_by_itself(folder: Path) -> None:
    """As the whole has it, integers among it."""
    whole = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    for prefix in ("audio_tower.", "language_model.model.layers.0."):
        found = Weights.open(folder).part(prefix, torch.float32)
        wanted = whole.get_submodule(prefix[:-1]).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], w) for name, w in wanted.items())


def packed(net: AudioLanguageModel, quantization: str) -> dict[str, torch.Tensor]:
    """The bytes of every packed weight."""
    found: dict[str, torch.Tensor] = {}

    class Kept:
        def load(self) -> dict:
            return {}

        def save(self, weights: dict) -> None:
            found.update({name: w.data for name, w in weights.items()})

    PackedModel(net, quantization, Kept())  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("alone", [True, False])
def test_the_engine_gets_the_very_integers(folder: Path, quantization: str, alone: bool) -> None:
    wanted = packed(AudioLanguageModel.from_pretrained(find_model("nano")), quantization)
    net = AudioLanguageModel.from_pretrained(folder, integers_alone=alone)
    assert stored_quantization(net) == quantization
    assert can_pack(net)
    found = packed(net, quantization)
    assert found.keys() == wanted.keys()
    for name, data in wanted.items():
        assert torch.equal(found[name], data), name


def test_the_network_has_the_values_of_the_integers(folder: Path, quantization: str) -> None:
    net = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    plain = AudioLanguageModel.from_pretrained(find_model("nano"), dtype=torch.float32)
    format = {"int8": "int8", "int4": "int4-g32"}[quantization]
    expected = ops.quantize(plain.get_parameter(LAYER), format).dequantize()
    assert torch.equal(net.get_parameter(LAYER), expected)
    table = net.language_model.model.embed_tokens.weight
    assert torch.equal(table, plain.language_model.model.embed_tokens.weight)
    assert (
        net.language_model.lm_head.weight is table
    )  # nano ties them; the head's integers go along
    assert kept(table) is not None


def test_saved_again_it_is_the_same_file(folder: Path, tmp_path: Path) -> None:
    for alone in (True, False):
        net = AudioLanguageModel.from_pretrained(folder, integers_alone=alone)
        net.save_pretrained(tmp_path / str(alone))
        first, second = (
            load_file(f / "model.safetensors") for f in (folder, tmp_path / str(alone))
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert f"{LAYER}.quantization" in first
        assert LAYER not in first


def test_it_is_smaller(folder: Path, quantization: str) -> None:
    size = (folder / "model.safetensors").stat().st_size
    before = (find_model("nano") / "model.safetensors").stat().st_size
    assert size < before * {"int8": 0.6, "int4": 0.5}[quantization]


def test_what_was_changed_is_no_longer_those_integers(folder: Path, tmp_path: Path) -> None:
    net = AudioLanguageModel.from_pretrained(folder)
    with torch.no_grad():
        net.get_parameter(LAYER).mul_(2)
    assert kept(net.get_parameter(LAYER)) is None
    net.multi_modal_projector.linear_1.weight = torch.nn.Parameter(
        torch.zeros_like(net.multi_modal_projector.linear_1.weight)
    )
    changed = {LAYER, "multi_modal_projector.linear_1.weight"}
    names = {n for n, _ in kept_in(AudioLanguageModel.from_pretrained(folder)).items()}
    assert names - set(kept_in(net)) == changed
    net.save_pretrained(tmp_path / "out")
    assert changed <= load_file(tmp_path / "out" / "model.safetensors").keys()
    again = AudioLanguageModel.from_pretrained(tmp_path / "out")
    assert torch.equal(again.get_parameter(LAYER), net.get_parameter(LAYER))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{LAYER}.scales"), "scales is missing"),
        (lambda t: t.pop(f"{LAYER}.quantization"), "lacks"),
        (lambda t: t.update({f"{LAYER}.values": t[f"{LAYER}.values"][1:].clone()}), "values"),
        (lambda t: t.update({f"{LAYER}.quantization": torch.ones(3, dtype=torch.uint8)}), "readable"),
        (lambda t: t.update(ops.quantize(torch.ones(8, 64), "int8").tensors(LAYER)), "asks for"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_one_clear_error(
    folder: Path, tmp_path: Path, change: object, said: str
) -> None:
    out = tmp_path / "damaged"
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        AudioLanguageModel.from_pretrained(out, integers_alone=True)
