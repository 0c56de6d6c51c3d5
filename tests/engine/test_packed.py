"""Packed weights at work: the same as the model's own modules, fresh after changes, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import afnext
from afnext import ops
from afnext.audio import load
from afnext.engine.packed_cache import PackedCache
from afnext.engine.pages import Sequence
from afnext.engine.runner import PREFILL_CHUNK, Runner
from afnext.hub import find_model
from afnext.model import AudioBatch, AudioLanguageModel, ModelConfig
from afnext.ops import runtime

pytestmark = pytest.mark.slow


def nano() -> AudioLanguageModel:
    """In float32: comparisons are of sums in another order, and its folder is bfloat16."""
    return AudioLanguageModel.from_pretrained(find_model("nano"), dtype=torch.float32)


@pytest.fixture(scope="module", params=["nano", "odd"])
def net(request: pytest.FixtureRequest) -> AudioLanguageModel:
    """nano in float32, and a random model whose every size is an odd one."""
    if request.param == "nano":
        return nano()
    config = ModelConfig.from_folder(find_model("nano")).to_dict()
    config["audio_config"].update(hidden_size=72, intermediate_size=100, num_attention_heads=3)
    config["text_config"].update(
        hidden_size=88, intermediate_size=200, num_attention_heads=6, num_key_value_heads=2,
        head_dim=40, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(1)
    return AudioLanguageModel(ModelConfig.from_dict(config)).eval()


def recording(seconds: float) -> np.ndarray:
    return (np.random.default_rng(2).standard_normal(int(16_000 * seconds)) * 0.1).astype("float32")


@torch.inference_mode()
def test_the_encoder_gives_what_its_modules_give(net: AudioLanguageModel) -> None:
    windows = [
        *load(recording(33.3), sample_rate=16_000),
        *load(recording(1.7), sample_rate=16_000),
    ]
    audio = AudioBatch.collate([windows], max_windows=1)
    packed = Runner(net)._packed
    assert packed is not None
    ours, theirs = packed.encode(audio), net.encode(audio)
    assert ours.shape == theirs.shape
    # Sums in another order, over as many layers as the encoder has.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


@torch.inference_mode()
@pytest.mark.parametrize("isa", runtime.available_cpu_isas())
def test_prefill_and_decode_give_what_one_forward_gives(net: AudioLanguageModel, isa: str) -> None:
    before = runtime.cpu_isa()
    runtime.set_cpu_isa(isa)
    try:
        ids = torch.randint(5, 1000, (40,))
        runner = Runner(net)
        sequence = Sequence(runner.new_pool(64, 16), 64)
        table = net.language_model.model.embed_tokens
        logits = [
            runner.prefill(table(ids[:7]), sequence),
            runner.prefill(table(ids[7:30]), sequence),
        ]
        logits += [runner.decode(int(token), sequence) for token in ids[30:]]
    finally:
        runtime.set_cpu_isa(before)
    expected = net(ids[None])[0][[6, 29, *range(30, 40)]]
    torch.testing.assert_close(
        torch.stack(logits), expected, rtol=0, atol=2e-5 * float(expected.abs().max())
    )


@torch.inference_mode()
def test_a_long_prompt_goes_in_chunks(net: AudioLanguageModel) -> None:
    ids = torch.randint(5, 1000, (PREFILL_CHUNK + 3,))
    runner = Runner(net)
    sequence = Sequence(runner.new_pool(len(ids), 32), len(ids))
    logits = runner.prefill(net.language_model.model.embed_tokens(ids), sequence)
    expected = net(ids[None])[0, -1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5 * float(expected.abs().max()))


@torch.inference_mode()
def test_bfloat16_is_as_good_as_the_modules() -> None:
    """Against float32 on the same weights; fused ops round less often, never more. Of one prompt the
    errors' ratio is chance (0.2 to 1.5); over sixteen it was 0.8 to 1.2 in twelve draws."""
    folder = find_model("nano")
    half = AudioLanguageModel.from_pretrained(folder, dtype=torch.bfloat16)
    exact = AudioLanguageModel.from_pretrained(folder, dtype=torch.bfloat16).float()
    runner = Runner(half)
    errors, theirs, sizes = [], [], []
    for _ in range(16):
        ids = torch.randint(5, 1000, (60,))
        sequence = Sequence(runner.new_pool(64, 16), 64)
        ours = runner.prefill(half.language_model.model.embed_tokens(ids), sequence)
        expected = exact(ids[None])[0, -1]
        errors.append((ours.float() - expected).norm())
        theirs.append((half(ids[None])[0, -1].float() - expected).norm())
        sizes.append(expected.norm())
    error, other, size = (torch.stack(n).norm() for n in (errors, theirs, sizes))
    assert error <= 1.6 * other
    assert error < 0.01 * size


def test_changed_weights_are_packed_again() -> None:
    model = afnext.load("nano")
    clip = recording(2.0)
    first = model.ask(clip, "What sounds do you hear?").text
    with torch.no_grad():
        table = model.net.language_model.lm_head.weight
        kept = table.clone()
        table.copy_(table.roll(1, 0))
    assert model.ask(clip, "What sounds do you hear?").text != first
    with torch.no_grad():
        table.copy_(kept)
    assert model.ask(clip, "What sounds do you hear?").text == first


def test_adapters_run_through_the_modules() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = afnext.load("nano", dtype="float32")
    clip = recording(2.0)
    before = model.ask(clip, "What sounds do you hear?").text
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), model.net)
    assert (
        model.ask(clip, "What sounds do you hear?").text == before
    )  # a fresh adapter adds nothing
    assert model.engine.runner._packed is None
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 3.0)
    assert model.ask(clip, "What sounds do you hear?").text != before
    with pytest.raises(ValueError, match="quantization"):
        Runner(model.net, "int8")


@pytest.mark.parametrize(
    ("quantization", "device", "named"), [("int3", "cpu", "int3"), ("int8", "meta", "meta")]
)
def test_impossible_quantization_is_refused(quantization: str, device: str, named: str) -> None:
    with pytest.raises(ValueError, match=f"quantization.*{named}"):
        afnext.load("nano", quantization=quantization, device=device)


@pytest.mark.parametrize("quantization", ["int3", "", "INT8"])
def test_the_runner_refuses_what_it_does_not_know(quantization: str) -> None:
    net = nano()
    with pytest.raises(ValueError, match=r"^quantization: must be one of int8, int4, got") as error:
        Runner(net, quantization)
    assert repr(quantization) in str(error.value)


def test_a_dtype_by_name_and_by_default_keep_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nano's folder is bfloat16; from float32 other scales come."""
    monkeypatch.setenv("AFNEXT_CACHE", str(tmp_path))
    monkeypatch.setattr(PackedCache.__init__, "__defaults__", (0, 1 << 40))  # nano is small
    for dtype, files in ((None, 1), ("bfloat16", 1), (torch.bfloat16, 1), ("float32", 2)):
        afnext.load("nano", quantization="int8", dtype=dtype)
        assert len(list((tmp_path / "packed").iterdir())) == files, dtype


def test_what_a_step_reads_is_counted(tmp_path: Path) -> None:
    net = nano()
    text = net.config.text
    layers = sum(p.numel() for p in net.language_model.model.layers.parameters())
    weights = layers + text.hidden_size * (text.vocab_size + 1)
    # The last panel of the head is padded.
    assert 0 <= Runner(net).bytes_per_token - 4 * weights < 32 * 4 * text.hidden_size


@torch.inference_mode()
def test_packed_weights_are_kept_and_told_apart(tmp_path: Path) -> None:
    net = nano()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"stands for a file")

    def runner(quantization: str = "int4") -> Runner:
        cache = PackedCache(
            [weights], quantization, torch.float32, tmp_path / "cache", least_bytes=0
        )
        return Runner(net, quantization, cache)

    def kept() -> list[Path]:
        return sorted((tmp_path / "cache/packed").iterdir())

    first = runner()
    [file] = kept()
    written = file.stat().st_ino
    os.utime(file, (0, 0))
    again = runner()
    assert kept() == [file]
    assert file.stat().st_ino == written
    assert file.stat().st_mtime > 0  # it was used
    assert first._packed is not None
    assert again._packed is not None
    hidden = torch.randn(3, net.config.text.hidden_size)
    assert torch.equal(first._packed.logits(hidden), again._packed.logits(hidden))
    runner("int8")
    assert len(kept()) == 2
    weights.write_bytes(b"stands for another file")
    runner()
    assert len(kept()) == 3


def test_packings_are_bounded_by_use(tmp_path: Path) -> None:
    weights = {"w": ops.pack(torch.randn(64, 64), "int8")}
    source = tmp_path / "model.safetensors"

    def keep(number: int) -> PackedCache:
        source.write_bytes(bytes(1 + number))
        cache = PackedCache(
            [source], "int8", torch.float32, tmp_path, least_bytes=0, max_bytes=bound
        )
        cache.save(weights)
        return cache

    bound = 1 << 30
    caches = [keep(n) for n in range(3)]
    assert len({cache.path for cache in caches}) == 3
    folder = caches[0].path.parent
    for age, cache in enumerate(caches):
        os.utime(cache.path, (age, age))
    others = [folder / "model.safetensors", folder / f"{caches[0].path.name}new.part"]
    left = folder / f"{caches[0].path.name}abc.part"
    for file in (*others, left):
        file.write_bytes(bytes(10_000_000))
    os.utime(left, (0, 0))
    os.utime(others[0], (0, 0))
    caches[0].load()  # used
    bound = 3 * caches[0].path.stat().st_size
    caches.append(keep(3))
    assert [cache.path.exists() for cache in caches] == [True, False, True, True]
    assert [file.exists() for file in (*others, left)] == [True, True, False]


def test_a_damaged_or_unwritable_cache_is_a_warning(tmp_path: Path) -> None:
    net = nano()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"stands for a file")
    cache = PackedCache([weights], "int8", torch.float32, tmp_path / "cache", least_bytes=0)
    cache.path.parent.mkdir(parents=True)
    cache.path.write_bytes(b"no safetensors")
    with pytest.warns(UserWarning, match="made anew"):
        Runner(net, "int8", cache)
    assert ops.load_packed(cache.path, cache.source)
    nowhere = PackedCache(
        [weights], "int8", torch.float32, weights, least_bytes=0
    )  # a file is no folder
    with pytest.warns(UserWarning, match="not kept"):
        Runner(net, "int8", nowhere)


def test_changed_weights_never_meet_the_cache(tmp_path: Path) -> None:
    net = nano()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"stands for a file")
    runner = Runner(
        net, "int8", PackedCache([weights], "int8", torch.float32, tmp_path, least_bytes=0)
    )
    [file] = (tmp_path / "packed").iterdir()
    before = file.read_bytes()
    with torch.no_grad():
        net.language_model.lm_head.weight.mul_(2)
    runner.refresh()
    assert file.read_bytes() == before
