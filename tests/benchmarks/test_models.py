"""What the benchmarks of whole models compare: the same work on the same weights, and nothing left behind."""

from __future__ import annotations

import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import MusicFlamingoForConditionalGeneration

from afnext import ops
from afnext.engine.gpu_model import GPU_FORMATS
from afnext.engine.packed import FORMATS, PackedEncoder, Packing
from afnext.evaluation.score import Answered, Share
from afnext.hub import find_model
from afnext.model import AudioLanguageModel
from benchmarks import decoder, encoder, engine, loading, quantization, timing
from benchmarks.models import folder, llama_cpp
from benchmarks.models.released import AUDIO, NO_AUDIO, TEXT, geometry, random_model, slice_of
from benchmarks.models.torch_quantized import Int4Linear, Int8Linear
from benchmarks.models.transformers_qwen2 import Qwen2, qwen2
from benchmarks.process import Peak, anonymous
from benchmarks.results import Table

pytestmark = pytest.mark.slow

SMALL = replace(
    TEXT, vocab_size=1633, hidden_size=256, intermediate_size=512, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=64,
)  # fmt: skip
SMALL_AUDIO = replace(
    AUDIO, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
)


@pytest.fixture(scope="module")
def net() -> AudioLanguageModel:
    return random_model(geometry(SMALL, NO_AUDIO))


@pytest.mark.parametrize(("quantization", "most"), [(None, 0.02), ("int8", 0.04), ("int4", 0.4)])
@pytest.mark.parametrize("context", [70, 0])
@torch.inference_mode()
def test_all_contestants_of_a_step_give_the_same_logits(
    net: AudioLanguageModel,
    quantization: str | None,
    most: float,
    context: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice, as a step must leave the cache as it was. Errors are those of random weights' formats."""
    monkeypatch.setattr(llama_cpp, "installed", lambda: False)  # has a test of its own
    ids = torch.tensor([40]) if context else torch.arange(50)
    (case,) = decoder._step(net, "step", quantization, ids, context)
    # The generator is done, and so the contestants are gone.
    with pytest.raises(KeyError):
        case.ours()
    for case in decoder._step(net, "step", quantization, ids, context):
        assert case.check is not None
        case.check()
        ours = [case.ours().float() for _ in range(2)]
        assert torch.equal(*ours)
        for name, peer in case.peers.items():
            peer()
            assert (peer().float() - ours[0]).norm() < most * ours[0].norm(), name


def test_nothing_of_a_step_is_left_when_the_next_begins(
    net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "installed", lambda: False)
    case = next(steps := decoder._step(net, "step", "int8", torch.tensor([40]), 70))
    runner = weakref.ref(steps.gi_frame.f_locals["ours"].runner)
    assert next(steps, None) is None
    assert case.rounds
    assert runner() is None


def test_a_slice_and_transformers_share_the_weights(net: AudioLanguageModel) -> None:
    part = slice_of(net, 1, 1024)
    model = qwen2(part)
    for shared in (part.language_model, model):
        weight = shared.model.layers[0].mlp.up_proj.weight
        assert weight.data_ptr() == net.language_model.model.layers[0].mlp.up_proj.weight.data_ptr()
    assert len(model.model.layers) == 1
    assert model.lm_head.weight.shape[0] == 1024


@torch.inference_mode()
def test_operations_of_a_prefill_are_those_that_torch_counts(net: AudioLanguageModel) -> None:
    ids = torch.arange(50)
    ours = decoder.Ours(net, None, ids, 0)
    with FlopCounterMode(display=False) as counter:
        Qwen2(qwen2(net), ids, *ours.cache())()
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "mm" in str(op))
    attention = 4 * 64 * 4 * 3 * 50 * 51 / 2  # D, heads, layers, pairs
    assert ours.flops - attention == products


@pytest.mark.parametrize(("kind", "most"), [(Int8Linear, 0.01), (Int4Linear, 0.09)])
@pytest.mark.parametrize("rows", [1, 40])
@torch.inference_mode()
def test_torch_quantised_layers_stand_for_the_layer(
    kind: type[nn.Module], most: float, rows: int
) -> None:
    """Within the error of rounding Gaussian weights: 0.6 % and 6 % (15 steps over a group's range)."""
    layer = nn.Linear(256, 192).bfloat16()
    nn.init.normal_(layer.weight)
    x = torch.randn(2, rows, 256).bfloat16()
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    out = kind(layer)(x)
    assert out.shape == exact.shape
    assert (out.double() - exact).norm() < most * exact.norm()


@pytest.mark.parametrize("seconds", [30, 5])
@torch.inference_mode()
def test_encoders_agree_and_operations_are_those_that_torch_counts(seconds: int) -> None:
    net = random_model(geometry(replace(SMALL, num_hidden_layers=0), SMALL_AUDIO))
    peers = {f"transformers {a}": encoder.transformers_encoder(net, a) for a in encoder.ATTENTION}
    case = encoder._window(
        net, PackedEncoder(net, Packing({}), "bfloat16"), peers, seconds, "bfloat16"
    )
    assert case.check is not None
    case.check()
    if seconds == 30:  # transformers pads the others
        with FlopCounterMode(display=False) as counter:
            case.peers["transformers eager"]()
        assert case.flops == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.slow
def test_transformers_loads_the_folder_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SHARD_BYTES", 1_000_000)
    folder.write_folder(tmp_path, geometry(SMALL, SMALL_AUDIO))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    _, found = MusicFlamingoForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]


@pytest.mark.slow
def test_loading_tells_time_and_memory(tmp_path: Path) -> None:
    weights, scratch = tmp_path / "weights", tmp_path / "scratch"
    folder.write_folder(weights, geometry(SMALL, SMALL_AUDIO))
    scratch.mkdir()
    told = list(loading.tables(weights, "int4", scratch))
    loads, once = (t for t in told if isinstance(t, Table))
    assert len(loads.rows) == 4
    for row in (*loads.rows.values(), *once.rows.values()):
        assert 0 < row["then, GiB"] < row["anonymous at peak, GiB"] + 0.02
        assert row["seconds"] > 0
    assert (scratch / "converted/config.json").exists()


def test_a_long_call_is_warmed_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for long, calls in ((0.0, 1 + 3), (1e9, 2 + 3 * 2)):
        monkeypatch.setattr(timing, "LONG", long)
        made: list[int] = []
        timing.alternate({"call": lambda made=made: made.append(1)}, rounds=3, at_least=0.0)
        assert len(made) == calls


def test_a_peak_that_is_gone_again_is_seen() -> None:
    before = anonymous()
    with Peak() as peak:
        block = torch.ones(1 << 25)
        until = time.monotonic() + 30
        while peak.bytes - before < 120 << 20 and time.monotonic() < until:
            time.sleep(0.01)
        del block
    assert 120 << 20 < peak.bytes - before < 160 << 20


@torch.no_grad()
def rounded(net: AudioLanguageModel, quantization: str) -> AudioLanguageModel:
    """``net`` with the values that its quantised weights stand for, as the engine stores them."""
    layers, head, encoder = FORMATS[quantization]
    text = replace(net.config.text, tie_word_embeddings=False)
    net.config = replace(net.config, text=text)
    net.language_model.lm_head.weight = nn.Parameter(net.language_model.lm_head.weight.clone())
    for name, module in net.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv1d):
            continue
        format = encoder
        if name.startswith("language_model"):
            format = head if name.endswith("lm_head") else layers
        rows = module.weight.flatten(1)
        module.weight.copy_(ops.quantize(rows, format).dequantize().view_as(module.weight))
    return net


def test_rounded_weights_are_what_the_engine_computes_with() -> None:
    """The products also round activations, here to 16 bits: far less."""
    folder = find_model("nano")
    prompt = next(quantization.prompts(folder, 1))
    for format in ("int8", "int4"):
        listener = quantization.Listener(
            folder, quantization.Variant(format, format, activations="int16")
        )
        net = rounded(AudioLanguageModel.from_pretrained(folder, dtype=torch.float32), format)
        with torch.inference_mode():
            found = listener.log_probabilities(prompt)
            logits = net(prompt.ids[None], prompt.audio)[0, -prompt.answer - 1 : -1]
        expected = logits.double().log_softmax(-1)
        assert (expected.exp() * (expected - found)).sum(-1).max() < 1e-4


@pytest.mark.parametrize("format", ["int4", "fp8"])
def test_a_gpus_formats_are_told_by_their_numbers(tmp_path: Path, format: str) -> None:
    """The decoder's weights are those of its format, all others nano's own."""
    folder = quantization.as_on_gpu(find_model("nano"), tmp_path / "made", format)
    made, nano = (
        AudioLanguageModel.from_pretrained(f, dtype=torch.float32).state_dict()
        for f in (folder, find_model("nano"))
    )
    for name, weight in made.items():
        kind = GPU_FORMATS[format][name.endswith("lm_head.weight")]
        own = nano[name]
        if (name.endswith("proj.weight") and "language_model" in name) or "lm_head" in name:
            own = ops.quantize(own, kind).dequantize()
            assert not torch.equal(own, nano[name])
        assert torch.equal(weight, own), name


def test_losses_beyond_noise_are_failures() -> None:
    """One point of a hundred recordings each is what int4 may lose; three it may not, and int8 none."""
    exact = {"answers": {str(i): 1.0 for i in range(100)}, "transcripts": {"one": 1.0}}

    def told(loses: float, lost: float, noise: float) -> list[str]:
        found = {
            "answers": {str(i): 1 - lost + noise * (-1) ** i for i in range(100)},
            "transcripts": {"one": 0.0},  # one says nothing
        }
        variant = quantization.Variant("mine", loses=loses)
        return list(quantization.losses(variant, found, exact))

    assert told(0.02, 0.01, 0.0) == []
    assert told(0.02, 0.03, 0.01) == [
        "mine: answers lose 3.0 points of 100, more than 2.0 and than noise (0.2)"
    ]
    assert told(0.0, 0.01, 0.1) == []
    assert len(told(0.0, 0.01, 0.01)) == 1


def test_points_are_of_every_recording() -> None:
    def item(kind: str, recording: str, score: dict[str, Share]) -> Answered:
        return Answered(kind, kind, recording, "", lambda _: score)

    found = quantization.points(
        [
            item("events", "a", {"class f1": Share(3, 4), "recall": Share(0, 4)}),
            item("when", "a", {"right": Share(0.0)}),
            item("when", "b", {"right": Share(1.0)}),
            item("transcribe", "said", {"wer": Share(1, 10)}),
        ]
    )
    assert found == {"answers": {"a": 0.375, "b": 1.0}, "transcripts": {"said": 0.9}}


def test_int8_keys_and_the_kept_ones_differ_a_little() -> None:
    folder = find_model("nano")
    prompt = next(quantization.prompts(folder, 1))
    with torch.inference_mode():
        exact, kept = (
            quantization.Listener(folder, v).log_probabilities(prompt)
            for v in (quantization.EXACT, quantization.Variant("kv", kv_cache_dtype="int8"))
        )
    assert 0 < (exact.exp() * (exact - kept)).sum(-1).mean() < 1e-2


@torch.inference_mode()
def test_errors_of_products_are_of_every_layer_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of layer has a row; 16-bit activations are within the bound, and a bound can be broken."""
    folder = find_model("nano")
    asked = list(quantization.prompts(folder, 1))[:1]
    (table,) = quantization.errors("nano", quantization.nano_products(folder, asked))
    kinds = {name.partition(" ")[0] for name in table.rows}
    assert (len(table.rows), kinds) == (13, {"encoder", "adaptor", "decoder"})
    for row in table.rows.values():
        assert 0 < row["int4, x int16"] < quantization.MOST
        assert 20 * row["int4, x int16"] < row["int4, x int8"] < 0.03
    monkeypatch.setattr(quantization, "MOST", 0.0)
    _, *failures = quantization.errors("nano", iter([("one", torch.randn(2, 64), torch.eye(64))]))
    assert [f.error.split(":")[0] for f in failures] == ["one, int8, x int16", "one, int4, x int16"]


@pytest.mark.slow
@pytest.mark.skipif(not llama_cpp.installed(), reason="needs llama_cpp and gguf")
@pytest.mark.parametrize(("format", "most"), [(None, 0.02), ("int8", 0.04), ("int4", 0.4)])
@torch.inference_mode()
def test_llama_cpp_gives_the_same_logits(
    net: AudioLanguageModel, format: str | None, most: float
) -> None:
    ids = torch.arange(50)
    expected = Qwen2(qwen2(net), ids, [], [])().float()
    with llama_cpp.LlamaCpp(net, format, ids.tolist(), 0, 1) as llama:
        llama()
        assert (llama.logits() - expected).norm() < most * expected.norm()


class FakeLlama:
    """Stands for a process of llama.cpp."""

    open = 0

    def __init__(self, *of: object) -> None:
        pass

    def __enter__(self) -> FakeLlama:
        FakeLlama.open += 1
        return self

    def __exit__(self, *error: object) -> None:
        FakeLlama.open -= 1

    def __call__(self) -> None:
        pass


def test_the_engines_rows_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a small geometry: the contestants give a token each, or as many as there are requests."""
    monkeypatch.setattr(engine, "TEXT", replace(SMALL, max_position_embeddings=4096))
    monkeypatch.setattr(engine, "AUDIO", SMALL_AUDIO)
    monkeypatch.setattr(engine, "largest_cache", lambda: 0)
    monkeypatch.setattr(engine.llama_cpp, "installed", lambda: True)
    monkeypatch.setattr(engine.llama_cpp, "LlamaCpp", FakeLlama)
    engine._forget(everything=True)
    try:
        names = set()
        for case in engine.released():
            with case.context():
                ours = case.ours()
                theirs = [peer() for peer in case.peers.values()]
            names.add(case.name)
            weights = sum(
                p.numel() for p in engine._released().language_model.model.layers.parameters()
            )
            assert set(case.targets) <= set(case.peers)
            if "token behind" in case.name:
                assert case.name.endswith("bfloat16") <= (case.moved > 2 * weights)
                assert any(name.startswith("llama.cpp") for name in case.peers)
                assert FakeLlama.open == 1
            if "first token" in case.name:
                assert len(ours) == 1
                assert theirs[0].shape == (1, len(engine._prompt()[0]) + 1)
            elif "for each of" in case.name:
                assert len(ours) == engine.TOGETHER
        assert len(names) == 3 * len(engine.FORMATS)
    finally:
        engine._forget(everything=True)
    assert FakeLlama.open == 0
