"""Folders in fewer bits: they answer as a model quantised at load does; calibration brings them nearer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import afnext
from afnext import ops
from afnext.convert import convert
from afnext.engine import packed_cache
from afnext.engine.calibrate import calibrated
from afnext.engine.quantize_network import quantize_network
from afnext.hub import find_model
from afnext.model import AudioLanguageModel
from benchmarks import quantization as harness

QUESTION = "What sounds do you hear, and when?"


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_it_answers_as_one_quantised_at_load(
    tmp_path: Path, scene_file: Path, quantization: str
) -> None:
    out = convert("nano", tmp_path / "small", quantization=quantization)
    model = afnext.load(out)
    wanted = afnext.load("nano", quantization=quantization)
    assert model.ask(scene_file, QUESTION).text == wanted.ask(scene_file, QUESTION).text
    assert model.variant.name == "nano"
    assert afnext.load(out, quantization=quantization).ask(scene_file, QUESTION).text
    other = {"int8": "int4", "int4": "int8"}[quantization]
    with pytest.raises(ValueError, match=rf"quantization: .*{quantization}"):
        afnext.load(out, quantization=other)
    with pytest.raises(afnext.CheckpointError, match="quantised already"):
        convert(out, tmp_path / "again", quantization="int8")


def test_without_quantization_a_quantised_folder_becomes_numbers(tmp_path: Path) -> None:
    """They are those that its integers stand for, under the names that transformers reads."""
    small = convert("nano", tmp_path / "small", quantization="int8")
    out = convert(small, tmp_path / "out", dtype="float32")
    plain, integers = load_file(out / "model.safetensors"), load_file(small / "model.safetensors")
    assert plain.keys() == load_file(find_model("nano") / "model.safetensors").keys()
    assert {t.dtype for t in plain.values()} == {torch.float32}
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    [stored] = {n.removesuffix(".values") for n in integers if n.endswith(f"{name}.values")}
    expected = ops.QuantizedWeight.from_tensors(integers, stored).dequantize()
    assert torch.equal(plain[stored], expected)


def test_fp8_is_for_cuda(tmp_path: Path) -> None:
    out = convert("nano", tmp_path / "small", quantization="fp8")
    with pytest.raises(
        ValueError, match=r"device: .*small holds fp8 weights, which need CUDA, got cpu"
    ):
        afnext.load(out)
    # Elsewhere it stands for numbers, as other devices and transformers want them.
    net, plain = (
        AudioLanguageModel.from_pretrained(f, dtype=torch.float32)
        for f in (out, find_model("nano"))
    )
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    expected = ops.quantize(plain.get_parameter(name), "fp8").dequantize()
    assert torch.equal(net.get_parameter(name), expected)
    hearing = "audio_tower.layers.0.fc1.weight"
    assert torch.equal(net.get_parameter(hearing), plain.get_parameter(hearing))
    with pytest.raises(
        ValueError, match="quantization: must be one of int8, int4, fp8, got 'int2'"
    ):
        convert("nano", tmp_path / "other", quantization="int2")


def test_the_first_load_finds_it_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("AFNEXT_CACHE", str(cache))
    monkeypatch.setattr(packed_cache.PackedCache.__init__, "__defaults__", (0, 1 << 40))
    out = convert("nano", tmp_path / "small", quantization="int4")
    [file] = (cache / "packed").iterdir()
    ops.save_packed(file, _marked(file), packed_cache.identity(sorted(out.glob("*.safetensors"))))
    model = afnext.load(out)
    hidden = torch.ones(1, model.net.config.text.hidden_size, dtype=model.engine.runner.dtype)
    with torch.inference_mode():  # what lies there is used
        assert (model.engine.runner._packed.logits(hidden) == 0).all()
    assert [p.name for p in (cache / "packed").iterdir()] == [file.name]
    monkeypatch.setenv("AFNEXT_CACHE", "")
    convert("nano", tmp_path / "alone", quantization="int4")


def _marked(file: Path) -> dict[str, ops.PackedWeight]:
    """The packed weights of a file, with a head of nothing but zeros."""
    weights = ops.load_packed(file)
    head = weights["head"]
    weights["head"] = ops.pack(
        torch.zeros(head.n, head.k), head.format, activations=head.activations
    )
    return weights


@pytest.mark.slow
def test_calibrated_it_is_nearer_to_the_model(tmp_path: Path) -> None:
    """The divergence of next tokens over other scenes falls by a third at least. By how much, says
    ``benchmarks/quantization.py``; with 8 recordings, over half as many prompts, it may be a tenth.
    """
    recordings = []
    for index in range(100, 120):
        recordings.append(tmp_path / f"{index}.wav")
        soundfile.write(recordings[-1], harness.scene(index).samples, 16_000)
    told: list[float] = []
    out = convert(
        "nano", tmp_path / "calibrated", quantization="int4", calibrate=recordings,
        told=lambda what, share: told.append(share),
    )  # fmt: skip
    assert told[-1] == 1.0
    asked = list(harness.prompts(find_model("nano"), 30))
    with torch.inference_mode():
        listener = harness.Listener(find_model("nano"), harness.EXACT)
        expected = [listener.log_probabilities(p) for p in asked]
        far, near = (
            harness._divergence(
                harness.Listener(folder, harness.Variant("", "int4")), asked, expected
            )
            for folder in (find_model("nano"), out)
        )
    assert near["mean KL"] < far["mean KL"] / 1.5
    assert math.isfinite(near["99th percentile"])


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"calibrate: .*int4"):
        convert("nano", tmp_path / "a", quantization="int8", calibrate=["a.wav"])
    with pytest.raises(ValueError, match=r"calibrate: .*int4"):
        convert("nano", tmp_path / "a", calibrate=["a.wav"])
    with pytest.raises(ValueError, match="quantization: must be one of"):
        convert("nano", tmp_path / "a", quantization="int3")
    with pytest.raises(afnext.AudioError, match=r"missing\.wav"):
        convert("nano", tmp_path / "a", quantization="int4", calibrate=[tmp_path / "missing.wav"])
    assert not (tmp_path / "a").exists()
    net = AudioLanguageModel.from_pretrained(find_model("nano"))
    with pytest.raises(ValueError, match="a recording"):
        calibrated(net.language_model, [])
    with pytest.raises(ValueError, match="calibrate"):
        quantize_network(net, "int8", [torch.zeros(3, 256)])


@pytest.mark.slow
def test_a_long_recording_is_used_up_to_its_first_minute(tmp_path: Path) -> None:
    """And one that is broken is left out, and told."""
    noise = np.random.default_rng(0).standard_normal(70 * 16_000) * 0.01
    soundfile.write(tmp_path / "long.wav", noise, 16_000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF but no sound")
    given = [tmp_path / "broken.wav", tmp_path / "long.wav"]
    with pytest.warns(afnext.AudioWarning, match=r"not calibrated on: .*broken\.wav"):
        out = convert("nano", tmp_path / "out", quantization="int4", calibrate=given)
    assert (out / "model.safetensors").is_file()
