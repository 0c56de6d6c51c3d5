"""What is planned is what is measured: a step's peak by torch's own count of allocations, its operations."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from afnext.errors import AfnextError
from afnext.hub import EMBEDDED
from afnext.model import AudioLanguageModel, ModelConfig
from afnext.model.info import ModelInfo, geometry
from afnext.training import loop
from afnext.training.config import LoraConfig, ParallelConfig, TrainConfig
from afnext.training.data.mixture import LOOKAHEAD
from afnext.training.distributed.sharding import Trained, clip
from afnext.training.distributed.world import World
from afnext.training.network.lora import add_adapters
from afnext.training.network.objectives import share
from afnext.training.network.optimizer import build_optimizers
from afnext.training.network.recompute import autocast, set_activations
from afnext.training.planner import Made, Resources, as_dict, as_text, made, plan
from afnext.training.planner.dry_step import ACTIVATIONS, dry_step, without_memory
from afnext.training.planner.load import Load
from afnext.training.planner.plan import StagePlan, model_of, plan_stage
from afnext.training.recipe import load_recipe
from tests.parallel.processes import spawn
from tests.training.mesh_runs import recipe as mesh_recipe

pytestmark = pytest.mark.slow

NEAR = 0.1
RECIPES = Path(loop.__file__).parent.parent / "recipes"


def recipe(folder: Path, seconds: float, tokens: int, **stage: Any) -> TrainConfig:
    """nano on recordings of some seconds, one question about each, and more of them than are drawn at once:
    what a batch had twice it would share.
    """
    samples, said = np.random.default_rng(5).standard_normal(int(16_000 * seconds)) * 0.05, []
    for number in range(2 * LOOKAHEAD):
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
        turns = [{"from": "human", "value": f"<sound>\nWhat is sound {number}?"},
                 {"from": "gpt", "value": "A dog barks. " * 10}]  # fmt: skip
        said.append({"id": f"{number}", "sound": f"{number}.wav", "duration": seconds,
                     "conversations": turns})  # fmt: skip
    for name in ("heard", "read"):
        (folder / f"{name}.json").write_text(json.dumps(said))
    made = mesh_recipe(folder, steps=1, read=0.0, seconds=seconds + 1, tokens=tokens)
    changed = dataclasses.replace(made.stages[0], accumulate=1, per_recording=1, **stage)
    return dataclasses.replace(made, stages=[changed])


def measured(config: TrainConfig, out: Path) -> tuple[int, int, Load]:
    """Bytes of the second step of a run (the first makes the optimizer's state) on this process: all that is
    held at its peak, and what it added to what was there; and its first batch.
    """
    journal = loop.Journal(out / "log.jsonl")
    world = World(config.device)
    run = loop.Run(config, out, *loop.prepare(config, out / "data", journal), journal, None, world)
    stage, team = config.stages[0], world.team(config.stages[0], run.net.config.text)
    names = {n for pattern in stage.train for n in run.parts[0][pattern]}
    for name, parameter in run.trained.named_parameters():
        parameter.requires_grad_(name in names)
    set_activations(run.net, stage.activations)
    optimizers = build_optimizers(run.parameters, run.parts[0], stage)
    drawn = run.batches(stage, run.sources, team)
    batches = list(share(drawn[next(drawn.plans())].batches, stage, team, world))

    def step() -> None:
        for batch in batches:
            with autocast("cpu", config.bf16, stage.activations):
                losses = run.trained(run.losses, batch, stage)
            torch.stack(list(losses.values())).sum().backward()
            del losses
        clip([run.parameters[n] for n in sorted(names)], stage.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    step()
    state = [v for o in optimizers for s in o.state.values() for v in s.values()]
    kept = (
        t.to_local() if isinstance(t, DTensor) else t for t in (*run.trained.parameters(), *state)
    )
    there = sum(t.nbytes for t in kept)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    load = Load.of_batch(batches[0])
    return there + load.data_bytes + peak, peak, load


def planned(config: TrainConfig, load: Load, processes: int = 1) -> StagePlan:
    with without_memory():
        net = AudioLanguageModel(ModelConfig.from_folder(EMBEDDED["nano"]))
        add_adapters(net, config)
        return plan_stage(config, 0, Trained(net, None), Resources(processes), load)


def check(config: TrainConfig, out: Path) -> None:
    total, peak, load = measured(config, out)
    found = planned(config, load)
    there = ("parameters", "optimizer state", "data")
    added = sum(size for part, size in found.memory.items() if part not in there)
    assert found.total == pytest.approx(total, rel=NEAR)
    assert added == pytest.approx(peak, rel=NEAR), found.memory


def test_a_step_takes_what_was_planned(tmp_path: Path) -> None:
    """Within 10 %, and so does what comes and goes alone, most of it activations."""
    check(recipe(tmp_path, 10.0, 1500), tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "stage",
    [
        {"seconds": 60.0, "tokens": 3500},
        {"seconds": 60.0, "tokens": 3500, "activations": "selective"},
        {"seconds": 60.0, "tokens": 3500, "activations": "recompute"},
        {"seconds": 30.0, "tokens": 3500, "optimizer": "muon"},
        {"seconds": 30.0, "tokens": 3500, "train": {"multi_modal_projector": 1e-4},
         "freeze": ["audio_tower", "language_model"]},
        {"seconds": 30.0, "tokens": 3500, "train": {"lora": 1e-4}, "freeze": ["net"],
         "lora": LoraConfig(16, 16.0, "language_model.*_proj")},
    ],
    ids=lambda stage: ", ".join(map(str, stage.values())),
)  # fmt: skip
def test_every_sort_of_step_takes_what_was_planned(
    stage: dict[str, Any], bf16: bool, tmp_path: Path
) -> None:
    """In float32 half as much is as many bytes."""
    if not bf16:
        stage = stage | {"seconds": stage["seconds"] / 2, "tokens": stage["tokens"] // 2}
    check(dataclasses.replace(recipe(tmp_path, **stage), bf16=bf16), tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize(
    "stage",
    [
        {"accumulate": 4},
        {"accumulate": 8, "bf16": False},
        {"accumulate": 2, "parallel": ParallelConfig(ulysses=2)},
        {"accumulate": 1, "parallel": ParallelConfig(ulysses=2, ring=2)},
    ],
    ids=["shards", "of two batches, float32", "shards and shared", "shared"],
)
def test_each_of_four_processes_takes_what_was_planned(
    stage: dict[str, Any], tmp_path: Path
) -> None:
    """Whichever it is, with FSDP's shards and with a part of each sequence."""
    bf16 = stage.get("bf16", True)
    every = {key: value for key, value in stage.items() if key != "bf16"}
    config = recipe(tmp_path, 30.0, 3500 if bf16 else 1700)
    config = dataclasses.replace(
        config, bf16=bf16, stages=[dataclasses.replace(config.stages[0], **every)]
    )
    for total, _, load in spawn(4, measured, config, tmp_path):
        assert planned(config, load, 4).total == pytest.approx(total, rel=NEAR)


@pytest.mark.sweep
def test_the_7b_chain_is_the_published_one() -> None:
    """Counts, limits and memory of its four stages, in seconds and without weights: parameters as published,
    audio and context as published, and operations those of the textbook.
    """
    config = load_recipe(RECIPES / "7b")
    whole = ModelInfo.of(geometry("7b"))
    resources = Resources(processes=128, device_memory=80e9)
    # Two of its stages; the command's test and benchmarks run all.
    long = dataclasses.replace(config.stages[3], mixture_of={})
    config = dataclasses.replace(config, stages=[config.stages[0], long])
    first, last = plan(config, resources)
    constants = 1500 * 1280  # Whisper's sinusoids
    for stage in (first, last):
        assert sum(count for count, _ in stage.counts.values()) == whole.parameters - constants
        assert stage.total <= 80e9
    assert first.counts["multi_modal_projector"] == (whole.parts["adaptor"], 1e-3)
    assert all(rate is None for pattern, (_, rate) in first.counts.items() if "proj" not in pattern)
    assert all(rate == 5e-5 for _, rate in last.counts.values())
    assert last.mesh == (16, 2, 4)
    assert last.load.documents[0] == 60 * 750 + 128
    # A frozen decoder has neither gradients nor state: what is there is of the adaptor.
    assert first.memory["optimizer state"] == 2 * 4 * whole.parts["adaptor"] / 128
    assert first.memory["gradients"] < 3 * 4 * whole.parts["adaptor"]
    assert last.memory["optimizer state"] == pytest.approx(2 * 4 * whole.parameters / 128, rel=1e-3)
    text = as_text([first, last], resources)
    assert "pretrain-1" in text
    assert "fits 80 GB" in text
    json.dumps(as_dict([first, last], resources))


def test_operations_are_those_of_the_textbook() -> None:
    """Of decoder layers in 7B's geometry: two for each weight and token forward, four backward, and causal
    attention; computed again forward's twice; without backward of weights that rest.
    """
    known = geometry("7b")
    text = dataclasses.replace(known.text, num_hidden_layers=2, vocab_size=1000)
    audio = dataclasses.replace(known.audio, num_hidden_layers=1)
    config = dataclasses.replace(known, text=text, audio=audio, audio_token_id=1)
    tokens = 4096
    load = Load((tokens,), (), tokens, 1)
    with without_memory():
        net = AudioLanguageModel(config)
        kept = dry_step(net, load, bf16=True, kept_gradients=True)
        set_activations(net, "recompute")
        again = dry_step(net, load, bf16=True, activations="recompute", kept_gradients=True)
        set_activations(net, "selective")
        selective = dry_step(net, load, bf16=True, activations="selective", kept_gradients=True)
        set_activations(net, "keep")
        net.requires_grad_(False)
        frozen = dry_step(net, load, bf16=True)
    matrices = [p for n, p in net.language_model.model.layers.named_parameters() if p.ndim == 2]
    linear = 2.0 * tokens * sum(p.numel() for p in matrices)
    attention = 2 * 4 * tokens * (tokens + 1) / 2 * 28 * 128
    assert frozen.flops == pytest.approx(linear + attention, rel=1e-3)
    assert kept.flops == pytest.approx(3 * linear + 3.5 * attention, rel=1e-3)
    # A layer's last product is not computed again: nothing behind it asks for it.
    last = 2.0 * tokens * 2 * text.hidden_size * text.intermediate_size
    assert again.flops == pytest.approx(4 * linear - last + 4.5 * attention, rel=1e-3)
    assert selective.flops == pytest.approx(4 * linear - last + 3.5 * attention, rel=1e-3)
    assert kept.attention_flops == pytest.approx(3.5 * attention)
    assert again.peak[ACTIVATIONS] < selective.peak[ACTIVATIONS] < kept.peak[ACTIVATIONS]


def test_what_cannot_be_planned_is_said() -> None:
    config = load_recipe(RECIPES / "7b")
    with pytest.raises(AfnextError, match=r"pretrain-1: 128 batches a step .* to 100 groups"):
        plan(config, Resources(processes=100))
    shared = Resources(processes=4, parallel=ParallelConfig(ulysses=3))
    with pytest.raises(AfnextError, match="ulysses 3 x ring 1 takes 3 processes for each"):
        plan(config, shared)
    with pytest.raises(AfnextError, match="replicate: 3 copies cannot be shared out among 4"):
        plan(dataclasses.replace(config, replicate=3), Resources(processes=4))
    with pytest.raises(AfnextError, match=r"no config\.json here"):
        plan(dataclasses.replace(config, init="nowhere"))


def test_a_small_chain_is_told_in_small_units_with_what_is_synthesised_before() -> None:
    """nano's first stage; where a device does ten million operations a second it takes days."""
    nano = load_recipe(RECIPES / "nano")
    first = plan(dataclasses.replace(nano, stages=nano.stages[:1]))
    found = made(nano)
    assert found
    # 75 hours in 16 bits at 16 kHz, 17,500 sentences, four soundfonts
    assert found.seconds == pytest.approx(75 * 3600, rel=0.01)
    assert found.bytes == pytest.approx(8.64e9 + 17_500 * 68e3 + 4 * 92e6, rel=0.01)
    text = as_text(first, Resources(), found)
    assert re.search(r"^time +[\d.]+ s$", text, re.MULTILINE)
    assert "days" not in text
    assert re.search(r"All stages: [\d.]+ s on 1 device that reaches 40% of 989 .* \(an H100's\), which is "
                     "assumed", text)  # fmt: skip
    assert "Steps of less than 10 ms take longer than their operations" in text
    assert (
        "before the first stage: 75 hours of recordings are synthesised on the CPU, 10 GB" in text
    )
    assert as_dict(first, Resources(), found)["synthesised"] == {
        "audio_seconds": found.seconds, "bytes": found.bytes,
    }  # fmt: skip
    slow = Resources(processes=2, peak=1e7)
    stage = dataclasses.replace(nano.stages[0], accumulate=2)
    text = as_text(plan(dataclasses.replace(nano, stages=[stage]), slow), slow)
    assert re.search(r"^days +[\d.]+", text, re.MULTILINE)
    assert re.search(
        r"All stages: [\d.e+]+ days on 2 devices that reach 40% of 1e-05 T operations/s, ", text
    )
    assert "synthesised" not in text
    assert "Steps of less" not in text


def test_a_chain_that_synthesises_nothing_plans_nothing_of_it() -> None:
    assert made(load_recipe(RECIPES / "7b")) is None
    sounds = load_recipe(RECIPES / "ablations")  # without speech and music there are no banks
    assert sounds.synthesis
    scenes = [scene for sets in sounds.synthesis.sets.values() for scene in sets]
    assert not any(scene.needs_banks for scene in scenes)
    seconds = sum(scene.seconds for scene in scenes)
    assert made(sounds) == Made(seconds, 32_000 * seconds)


@pytest.mark.parametrize(
    "name", ["nano", "nano-four", "nano-more", "nano-gpu", "af-whisper", "ablations"]
)
def test_recipes_are_planned(name: str) -> None:
    """Each in the package; 7b's are below, and a decoder that answers nothing costs nothing."""
    config = load_recipe(RECIPES / name)
    stages = plan(config, Resources(4 if name == "nano-four" else 1))
    assert [found.stage.name for found in stages] == [stage.name for stage in config.stages]
    for found in stages:
        assert found.flops > 0
        assert found.stage.losses.answer or not found.memory["logits"]


def test_a_model_from_nothing_has_the_size_it_will_have() -> None:
    """nano's recipe, whose tokenizer is not trained yet, beside the model in the package."""
    planned, made = (
        model_of(load_recipe(RECIPES / "nano")),
        ModelConfig.from_folder(EMBEDDED["nano"]),
    )
    assert ModelInfo.of(planned).parts == ModelInfo.of(made).parts
    assert planned.text.vocab_size == made.text.vocab_size
