"""LoRA: nothing changes at first, nothing but adapters ever, and what is merged computes what was trained."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from afnext.convert import convert
from afnext.errors import AfnextError
from afnext.hub import EMBEDDED
from afnext.model import AudioLanguageModel
from afnext.training import loop
from afnext.training.config import LoraConfig, ParallelConfig, TrainConfig
from afnext.training.data.batches import Batches
from afnext.training.network.lora import LoraLinear, add_adapters
from afnext.training.planner import plan
from afnext.training.recipe import load_recipe, told_of
from afnext.training.run.checkpoints import newest, read
from tests.parallel.processes import spawn
from tests.training.conftest import stage
from tests.training.mesh_runs import all_recorded, dropped, recorded, write_sources
from tests.training.mesh_runs import recipe as mesh_recipe

pytestmark = pytest.mark.slow

LORA = LoraConfig(4, 8.0, r"language_model.*(q|v|down)_proj|multi_modal_projector\.linear_1")
IDS = torch.tensor([[5, 9, 2, 7, 30, 12]])


def chain(recipe: TrainConfig, lora: LoraConfig = LORA) -> TrainConfig:
    """Weights of some steps, then adapters over them."""
    common = {"evaluate_every": 0, "held_out": None}
    everything = stage("everything", ["net"], [])
    adapters = stage("adapters", ["lora"], ["net"], lora=lora, mixture={"longer": 1.0},
                     audio_seconds=40.0)  # fmt: skip
    return dataclasses.replace(recipe, stages=[everything, adapters], **common)


def nano() -> AudioLanguageModel:
    return AudioLanguageModel.from_pretrained(EMBEDDED["nano"], dtype=torch.float32)


@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_changes_at_first(recipe: TrainConfig, autocast: bool) -> None:
    """To the bit, gradients of the base too."""
    found = []
    for net in (nano(), adapted := nano()):
        if net is adapted:
            add_adapters(net, chain(recipe))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = net(IDS)
        logits.float().square().mean().backward()
        found.append((logits, net.language_model.model.layers[0].self_attn.q_proj.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    layers = [n for n, m in adapted.named_modules() if isinstance(m, LoraLinear)]
    assert len(layers) == 4 * 3 + 1


def test_adapters_alone_are_trained_and_the_folder_has_them_merged(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    """Muon and AdamW over them; the model folder holds what the network with adapters computes."""
    config = chain(recipe)
    both = dataclasses.replace(
        config.stages[1], optimizer="muon", train={"lora_A": 1e-2, "lora_B": 3e-2}
    )
    config = dataclasses.replace(config, stages=[config.stages[0], both], save_every=2, keep=5)
    journal = loop.Journal(tmp_path / "log.jsonl")
    run = loop.Run(config, tmp_path, *loop.prepare(config, shared_data, journal), journal)
    run.train(["everything"])
    before = {n: p.clone() for n, p in run.trained.state_dict().items()}
    assert not any(p.any() for n, p in before.items() if n.endswith("lora_B"))
    folder = run.train()
    for name, value in run.trained.state_dict().items():
        assert torch.equal(value, before[name]) == ("lora" not in name), name
    saved = read(tmp_path / "checkpoints" / "01-0000002")
    moments = [name for name in saved if name.startswith("optimizer/")]
    assert moments
    assert all("lora" in name for name in moments)

    merged = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    assert {n for n, _ in merged.named_parameters()} == {
        n for n, _ in run.net.named_parameters() if "lora" not in n
    }
    with torch.no_grad():
        trained, plain = run.net(IDS), merged(IDS)
        torch.testing.assert_close(plain, trained, atol=2e-5, rtol=0)
        for module in run.net.modules():
            if isinstance(module, LoraLinear):
                module.active = False
        assert (run.net(IDS) - trained).abs().max() > 1e-2
    through_peft(tmp_path / "adapter", run.net, trained)


def through_peft(adapter: Path, net: AudioLanguageModel, wanted: Tensor) -> None:
    """PEFT reads the adapter over transformers' class with the base's weights; so do we over our own."""
    import peft
    from transformers import MusicFlamingoForConditionalGeneration

    base = AudioLanguageModel(net.config)
    base.load_state_dict({n: w for n, w in net.state_dict().items() if "lora" not in n})
    base.save_pretrained(adapter.parent / "base")
    theirs = MusicFlamingoForConditionalGeneration.from_pretrained(
        adapter.parent / "base", dtype=torch.float32
    )
    with torch.no_grad():
        assert (theirs(IDS).logits - wanted).abs().max() > 1e-2
        adapted = peft.PeftModel.from_pretrained(theirs, adapter)
        torch.testing.assert_close(adapted(input_ids=IDS).logits, wanted, atol=2e-5, rtol=0)
    ours = AudioLanguageModel.from_pretrained(adapter.parent / "base", adapter=adapter)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), wanted, atol=2e-5, rtol=0)
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == LORA.rank


def test_a_broken_run_goes_on_to_the_same_adapters(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit-equal, with dropout: what it draws went on too."""
    config = chain(recipe, dataclasses.replace(LORA, dropout=0.3))
    whole = loop.train(config, tmp_path / "whole", data=shared_data)
    made, broken = Batches.__getitem__, tmp_path / "broken"

    def fails(self, plan):
        if (self.stage.name, plan.step) == ("adapters", 2):
            raise KeyboardInterrupt
        return made(self, plan)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__getitem__", fails)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, broken, data=shared_data)
    saved = newest(broken / "checkpoints")
    assert saved is not None
    assert saved.name == "01-0000002"
    resumed = loop.train(config, broken, data=shared_data, resume=True)
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        a, b = load_file(whole.parent / file), load_file(resumed.parent / file)
        assert all(torch.equal(a[name], b[name]) for name in a), file
    made = load_file(convert(broken, tmp_path / "made") / "model.safetensors")
    merged = load_file(resumed / "model.safetensors")
    assert all(torch.equal(made[name], value) for name, value in merged.items())
    without = loop.train(chain(recipe), tmp_path / "without", data=shared_data)
    adapters = [load_file(f.parent / "adapter/adapter_model.safetensors") for f in (whole, without)]
    assert any(not torch.equal(adapters[0][n], adapters[1][n]) for n in adapters[0])


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"dropout": 1.0}, "dropout at least 0 and below 1"),
        ({"targets": "(q_proj"}, r"'\(q_proj' is no pattern"),
        ({"targets": "k_prj"}, "'k_prj' names no linear layer"),
        ({"rank": 200}, r"rank 200 is more than that of .*layers.0.self_attn.k_proj, \[128, 256\]"),
        ({"targets": "lm_head"}, "'lm_head' names language_model.lm_head, whose weight is tied"),
    ],
)
def test_what_cannot_be_adapted_is_named(recipe: TrainConfig, lora: dict, message: str) -> None:
    values = dataclasses.asdict(LORA) | {"targets": "self_attn.k_proj"} | lora
    with pytest.raises(AfnextError, match=message):
        add_adapters(nano(), chain(recipe, LoraConfig(**values)))


@pytest.mark.parametrize(
    ("rate", "lora", "message"),
    [
        ("lora", "rank: 0, targets: q_proj", r"stages\[1\]: lora: rank must be at least 1"),
        ("lora", "rank: 8, targets: (q", r"stages\[1\]: lora: targets '\(q' is no pattern"),
        ("lora", "rank: 8, targets: k_prj", "tune: lora: targets 'k_prj' names no linear layer; "
         "language_model.model.layers.0.self_attn.q_proj is one"),
        ("lora", "rank: 8, targets: lm_head", "tune: lora: targets 'lm_head' names .* is tied"),
        ("lora", "rank: 999, targets: k_proj", "tune: lora: rank 999 is more than that of "),
        ("lora_C", "rank: 8, targets: k_proj", "tune: the pattern 'lora_C' matches no parameter"),
        ("net", "rank: 8, targets: k_proj", r"stages\[1\]: tune: lora is given, and train has no rate"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("planned", [False, True])
def test_what_cannot_be_adapted_is_told_with_file_stage_and_key(
    tmp_path: Path, rate: str, lora: str, message: str, planned: bool
) -> None:
    """Where a run begins, and where it is planned."""
    (tmp_path / "x.jsonl").write_text('{"conversations": [{"from": "human", "value": "Who?"}, '
                                      '{"from": "gpt", "value": "Ada."}]}\n')  # fmt: skip
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"{{name: mine, init: nano, sources: {{x: {{path: x.jsonl}}}}, stages: [{{name: first, steps: 1, "
        f"train: {{net: 1e-3}}, mixture: {{x: 1}}}}, {{name: tune, steps: 1, train: {{{rate}: 1e-3}}, "
        f"freeze: [net], mixture: {{x: 1}}, lora: {{alpha: 16, {lora}}}}}]}}"
    )

    def begun() -> None:
        if not planned:
            loop.train(file, tmp_path / "run")
        with told_of(file):
            plan(load_recipe(file))

    with pytest.raises(AfnextError, match=f"^{file}: {message}"):
        begun()


def test_a_recipe_says_what_adapters_are(recipe: TrainConfig, tmp_path: Path) -> None:
    text = """
name: x
stages:
  - name: a
    steps: 1
    train: {%s: 1.0e-4}
    freeze: [net]
    mixture: {s: 1.0}
    lora: {rank: 8, alpha: 16, targets: q_proj}
"""
    (tmp_path / "a.yaml").write_text(text % "lora")
    config = load_recipe(tmp_path / "a.yaml")
    assert config.lora == LoraConfig(8, 16.0, "q_proj")
    (tmp_path / "a.yaml").write_text(text % "net")
    with pytest.raises(AfnextError, match="a: lora is given, and train has no rate for it"):
        load_recipe(tmp_path / "a.yaml")
    first = config.stages[0]
    other = dataclasses.replace(first, name="b", lora=LoraConfig(4, 16.0, "q_proj"))
    with pytest.raises(AfnextError, match="x: stages have different lora; a chain has one"):
        dataclasses.replace(config, stages=[first, other])


@pytest.mark.sweep
def test_two_processes_train_the_adapters_of_one(tmp_path: Path) -> None:
    """Sharded, and with sequences shared: gradients of the adapters, and what is merged in the end."""
    write_sources(tmp_path / "sources")

    def config(**mesh: ParallelConfig) -> TrainConfig:
        made = mesh_recipe(
            tmp_path / "sources", steps=2, seconds=10.0, read=0.6, tokens=120, **mesh
        )
        adapted = dataclasses.replace(
            made.stages[0], lora=LORA, train={"lora": 1e-3}, freeze=["net"]
        )
        return dataclasses.replace(made, stages=[adapted])

    alone = recorded(config(), tmp_path / "alone")
    meshes = [config(), config(parallel=ParallelConfig(ulysses=2))]
    for answers in spawn(2, all_recorded, meshes, tmp_path / "spread", tmp_path / "alone"):
        for steps in answers:
            for found, wanted in zip(steps, alone, strict=True):
                assert found["error"] < 5e-6
                assert found["losses"] == pytest.approx(wanted["losses"], rel=2e-6)
    before = load_file(EMBEDDED["nano"] / "model.safetensors")
    model = load_file(tmp_path / "alone" / "run" / "model" / "model.safetensors")
    for number in range(len(meshes)):
        run = tmp_path / "spread" / str(number) / "run"
        merged = load_file(run / "model" / "model.safetensors")
        for name, value in model.items():
            rests = name.endswith("bias") or not re.search(LORA.targets, name)
            assert torch.equal(merged[name], before[name].float()) == rests, name
            assert (merged[name] - value).abs().max() < 1e-5, name
        assert (run / "adapter" / "adapter_config.json").exists()


def test_each_process_drops_others(tmp_path: Path) -> None:
    """Those of a sequence too: what they have of it is not the same."""
    write_sources(tmp_path / "sources")
    made = mesh_recipe(tmp_path / "sources", steps=1, parallel=ParallelConfig(ulysses=2))
    adapters = dataclasses.replace(made.stages[0], train={"lora": 1e-4}, freeze=["net"])
    lora = dataclasses.replace(LORA, dropout=0.3)
    config = dataclasses.replace(made, stages=[dataclasses.replace(adapters, lora=lora)])
    first, second = spawn(2, dropped, config, tmp_path / "run")
    assert 0.0 in first
    assert first != second
