"""LoRA adapters: merged, they compute what PEFT's own model does; what cannot be merged is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import afnext
from afnext.convert import convert
from afnext.errors import CheckpointError
from afnext.hub import find_model
from afnext.model import AudioLanguageModel
from afnext.model.adapter import CONFIG, WEIGHTS, merge_adapter
from tests.command import afnext as command

IDS = torch.arange(40)[None]
EVERYWHERE = r".*(layers\.\d+\..*_proj|fc1|linear_2|lm_head)"


def adapted(model: nn.Module, folder: Path, seed: int = 1, **options: Any) -> nn.Module:
    """``model`` in PEFT's, with adapters that change it, saved to ``folder``."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": EVERYWHERE, **options}
    made = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    made.save_pretrained(str(folder))
    return made


def logits(net: nn.Module) -> Tensor:
    with torch.no_grad():
        out = net(input_ids=IDS)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\..*v_proj": 32}},
        {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "gaussian"},
    ],
)
def test_it_computes_what_peft_computes(pair: Any, tmp_path: Path, options: dict) -> None:
    """Over transformers' classes, by the names that they have in memory."""
    theirs = type(pair.theirs).from_pretrained(pair.folder)
    wanted = logits(adapted(theirs, tmp_path / "adapter", **options))
    plain = AudioLanguageModel.from_pretrained(pair.folder)
    ours = AudioLanguageModel.from_pretrained(pair.folder, adapter=tmp_path / "adapter")
    assert (logits(plain) - wanted).abs().max() > 0.1
    torch.testing.assert_close(logits(ours), wanted, atol=1e-4, rtol=1e-5)
    assert all(type(a) is type(b) for a, b in zip(plain.modules(), ours.modules(), strict=True))


def test_encoder_and_adaptor_have_adapters_too(
    flamingo: Any, tmp_path: Path, clip: Callable, prompt: Callable
) -> None:
    from afnext.model import AudioBatch

    windows = clip(3)
    ids, audio = torch.tensor([prompt(windows)]), AudioBatch.collate([windows])
    base = AudioLanguageModel.from_pretrained(flamingo.folder)
    wrapped = adapted(base, tmp_path / "ours", target_modules=r".*(fc1|linear_2|out_proj)")
    names = load_file(tmp_path / "ours" / WEIGHTS)
    assert any("audio_tower" in n for n in names)
    assert any("multi_modal_projector" in n for n in names)
    ours = AudioLanguageModel.from_pretrained(flamingo.folder, adapter=tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, audio), wrapped(ids, audio), atol=1e-4, rtol=1e-5)


def test_a_weight_is_rounded_once(flamingo: Any, tmp_path: Path) -> None:
    """In bfloat16: the nearest to the sum in float64; a small change is not rounded before it is added."""
    adapted(
        AudioLanguageModel.from_pretrained(flamingo.folder),
        tmp_path / "a",
        target_modules=["q_proj"],
    )
    half = AudioLanguageModel.from_pretrained(flamingo.folder, dtype=torch.bfloat16)
    name = "language_model.model.layers.0.self_attn.q_proj"
    before = half.get_submodule(name).weight.double()
    merge_adapter(half, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    wanted = before + 2 * b @ a
    spacing = wanted.abs() * 2**-8  # at most half the distance between neighbours
    assert ((half.get_submodule(name).weight.double() - wanted).abs() <= spacing * 1.001).all()


@pytest.fixture
def adapter(flamingo: Any, tmp_path: Path) -> Path:
    """One to spoil."""
    folder = tmp_path / "adapter"
    adapted(AudioLanguageModel.from_pretrained(flamingo.folder), folder, target_modules=["q_proj"])
    return folder


LAYER = "base_model.model.language_model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\] is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
        ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern '\(' is no pattern"),
    ],
)
def test_what_its_config_asks_for_is_done_or_refused(
    flamingo: Any, adapter: Path, config: dict, message: str
) -> None:
    known = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(known | config))
    with pytest.raises(CheckpointError, match=message):
        AudioLanguageModel.from_pretrained(flamingo.folder, adapter=adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{LAYER}.lora_A.weight": torch.zeros(4, 9)}, r"q_proj has A \[4, 9\] and B \[256, 4\]"),
        ({f"{LAYER}.lora_B.weight": torch.zeros(256)}, r"and B \[256\]; the model's layer, \[256, 256\]"),
        ({f"{LAYER}.lora_A.weight": None}, "q_proj lacks lora_A"),
        ({f"{LAYER}x.lora_A.weight": torch.zeros(1), f"{LAYER}x.lora_B.weight": torch.zeros(1)},
         "the model has no linear layer language_model.model.layers.0.self_attn.q_projx"),
        ({"base_model.model.x.lora_embedding_A": torch.zeros(1)}, "lora_embedding_A is not LoRA's of a"),
        ({f"{LAYER}.base_layer.weight": torch.zeros(256, 256)}, "base_layer.weight is not what the model"),
        ({"language_model.weight": torch.zeros(1)}, "language_model.weight is not LoRA's of a linear"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(
    flamingo: Any, adapter: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    """And nothing of the network is changed, where others fit."""
    tensors = load_file(adapter / WEIGHTS) | changes
    save_file({n: t for n, t in tensors.items() if t is not None}, adapter / WEIGHTS)
    net = AudioLanguageModel.from_pretrained(flamingo.folder)
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(net, adapter)
    theirs = flamingo.ours.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in net.state_dict().items())


def test_a_folder_that_is_incomplete_or_broken_is_refused(flamingo: Any, adapter: Path) -> None:
    def load() -> None:
        AudioLanguageModel.from_pretrained(flamingo.folder, adapter=adapter)

    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:500])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}: cannot be read"):
        load()
    save_file({}, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        load()
    (adapter / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"adapter .*: no {WEIGHTS}"):
        load()
    with pytest.raises(CheckpointError, match=r"adapter none: no such folder, nor a hub id"):
        afnext.load("nano", adapter="none")


QUESTION = "What sounds do you hear, and when?"


@pytest.fixture(scope="module")
def nanos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over the model in the package, where embeddings and head are one."""
    folder = tmp_path_factory.mktemp("run") / "adapter"
    net = AudioLanguageModel.from_pretrained(find_model("nano"), dtype=torch.float32)
    adapted(net, folder, target_modules=["q_proj", "v_proj", "down_proj", "fc2"], lora_alpha=32)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_who_loads_or_converts_with_it_gets_the_same_answer(
    nanos: Path, scene_file: Path, tmp_path: Path, quantization: str | None
) -> None:
    """The command too, which takes the folder of the run as well."""
    plain = afnext.load("nano", quantization=quantization).ask(scene_file, QUESTION).text
    model = afnext.load("nano", adapter=nanos, quantization=quantization)
    text = model.ask(scene_file, QUESTION).text
    assert text != plain
    merged = convert("nano", tmp_path / "merged", adapter=nanos, quantization=quantization)
    assert afnext.load(merged).ask(scene_file, QUESTION).text == text
    options = ["--quantization", quantization] if quantization else []
    done = command("ask", scene_file, QUESTION, "--adapter", nanos.parent, *options)
    assert (done.returncode, done.stdout.strip()) == (0, text), done.stderr
    if quantization:
        with pytest.raises(
            CheckpointError, match="as integers; load the one that it was made from"
        ):
            afnext.load(merged, adapter=nanos)


@pytest.mark.slow
def test_a_cache_on_disk_knows_adapters_apart(
    nanos: Path, scene_file: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(nanos, tmp_path / "other")
    save_file({n: -t for n, t in load_file(nanos / WEIGHTS).items() if "lora_B" in n}
              | {n: t for n, t in load_file(nanos / WEIGHTS).items() if "lora_A" in n},
              other / WEIGHTS)  # fmt: skip

    def said(adapter: Path | None) -> afnext.Reply:
        model = afnext.load("nano", adapter=adapter, disk_cache=tmp_path / "cache")
        reply = model.ask(scene_file, QUESTION, max_tokens=4, logprobs=1)
        model.engine.flush()
        return reply

    found = [[said(adapter) for adapter in (None, nanos, other)] for _ in range(2)]
    assert len({reply.logprobs[0].logprob for reply in found[0]}) == 3  # texts may be the same
    assert [reply.text for reply in found[1]] == [reply.text for reply in found[0]]
    assert [bool(reply.usage.cached_tokens) for reply in found[0]] == [False] * 3
    assert [bool(reply.usage.cached_tokens) for reply in found[1]] == [True] * 3


def test_a_tied_head_has_no_adapter_of_its_own(tmp_path: Path) -> None:
    net = AudioLanguageModel.from_pretrained(find_model("nano"), dtype=torch.float32)
    rank, width = 2, net.config.text.hidden_size
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2}))
    tensors = {"A": torch.zeros(rank, width), "B": torch.zeros(net.config.text.vocab_size, rank)}
    save_file(
        {f"base_model.model.lm_head.lora_{x}.weight": t for x, t in tensors.items()},
        folder / WEIGHTS,
    )
    with pytest.raises(
        CheckpointError, match="changes lm_head, whose weight is that of the embeddings"
    ):
        merge_adapter(net, folder)
