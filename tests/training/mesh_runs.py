"""Runs of nano for ten steps, alone and on several processes, and how far their gradients are apart."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from afnext.hub import EMBEDDED
from afnext.model.decoder import DecoderLayer
from afnext.model.encoder import EncoderLayer
from afnext.training import loop, stage
from afnext.training.config import (
    LossWeights,
    ModelShape,
    ParallelConfig,
    SourceConfig,
    StageConfig,
    SynthesisConfig,
    TrainConfig,
)
from afnext.training.data.batches import Batches, Plan, Step
from afnext.training.distributed.world import World
from afnext.training.network.lora import LoraLinear
from afnext.training.synthesis import banks
from afnext.training.synthesis.dataset import SceneSet
from tests.training.banks import make_once

STEPS = 10
LABELLED = [SceneSet("mixed", 4, 2.0, 4.0), SceneSet("sounds", 2, 2.0, 3.0)]


def write_sources(folder: Path) -> None:
    """``heard``: recordings of one window, of two and of a moment, several questions about one. ``read``:
    no recordings at all."""
    random = np.random.default_rng(5)
    folder.mkdir(parents=True)
    heard, read = [], []
    for number, seconds in enumerate([3.0, 0.5, 34.0, 7.7]):
        name = f"{number}.wav"
        samples = random.standard_normal(int(16_000 * seconds)) * 0.05
        soundfile.write(folder / name, samples, 16_000)
        for question in range(1 + number % 3):
            said = [
                {"from": "human", "value": f"<sound>\nWhat is sound number {question}?"},
                {"from": "gpt", "value": f"A dog barks {number} times, at <t>{number}.5</t>."},
            ]
            record = {"id": f"{number}-{question}", "sound": name, "duration": seconds}
            heard.append(record | {"conversations": said})
    for number in range(6):
        said = [
            {"from": "human", "value": f"What is {number} and two?"},
            {"from": "gpt", "value": f"I would say {number + 2}." + " Quite sure." * (number % 4)},
        ]
        read.append({"id": f"read-{number}", "conversations": said})
    (folder / "heard.json").write_text(json.dumps(heard))
    (folder / "read.json").write_text(json.dumps(read))


def recipe(
    folder: Path,
    parallel: ParallelConfig | None = None,
    replicate: int = 1,
    losses: LossWeights | None = None,
    optimizer: str = "adamw",
    read: float = 0.4,
    steps: int = STEPS,
    seconds: float = 40.0,
    tokens: int = 300,
) -> TrainConfig:
    every = StageConfig(
        "all",
        steps=steps,
        train={"net": 1e-4} | ({"heads": 1e-4} if losses else {}),
        mixture={"labelled" if losses else "heard": 1 - read, "read": read},
        audio_seconds=seconds,
        batch_tokens=tokens,
        accumulate=4,
        optimizer=optimizer,  # type: ignore[arg-type]
        losses=losses or LossWeights(length_power=0.5),
        parallel=parallel or ParallelConfig(),
    )
    return TrainConfig(
        name="nano",
        stages=[every],
        init=str(EMBEDDED["nano"]),
        sources={n: SourceConfig(str(folder / f"{n}.json")) for n in ("heard", "read")},
        synthesis=SynthesisConfig(1, 24, {"labelled": LABELLED}) if losses else None,
        replicate=replicate,
        bf16=False,
        threads=1,
        workers=1,
        evaluate_every=0,
        save_every=5,
        export_dtype="float32",
    )


def small(
    folder: Path, steps: int, accumulate: int = 4, parallel: ParallelConfig | None = None
) -> TrainConfig:
    """A network that is trained in a moment, from nothing; saved before every other step."""
    shape = ModelShape(
        pieces=400, audio_width=32, audio_layers=1, audio_heads=2, audio_ffn=48,
        width=32, layers=1, heads=2, kv_heads=1, ffn=48,
    )  # fmt: skip
    made = recipe(folder, parallel, steps=steps, seconds=10.0, tokens=150)
    stages = [dataclasses.replace(made.stages[0], accumulate=accumulate)]
    return dataclasses.replace(made, init="", model=shape, stages=stages, save_every=2, prefetch=3)


def gradients(run: loop.Run) -> dict[str, torch.Tensor]:
    """Of all parameters, whole, on every process."""
    found = {n: p.grad for n, p in run.parameters.items() if p.grad is not None}
    return {n: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for n, g in found.items()}


def recorded(config: TrainConfig, out: Path, reference: Path | None = None) -> list[dict]:
    """Train, and for each step either write the gradients to ``out`` or say how far they are from those that
    ``reference`` holds: the difference's norm beside the norm, of the whole and of the worst parameter.
    """
    found: list[dict] = []
    clip, losses = stage.clip, []

    def watched(parameters: list, limit: float) -> torch.Tensor:
        mine = gradients(run_of[0])
        if reference is None:
            torch.save(mine, out / f"{len(found)}.pt")
            found.append({})
        else:
            wanted = torch.load(reference / f"{len(found)}.pt", weights_only=True, mmap=True)
            assert mine.keys() == wanted.keys()
            off = {n: float((mine[n] - w).norm()) for n, w in wanted.items()}
            norms = {n: float(w.norm()) for n, w in wanted.items()}
            whole = sum(v**2 for v in norms.values()) ** 0.5
            total = sum(v**2 for v in off.values()) ** 0.5 / whole
            worst = max((off[n] / max(norms[n], 1e-3 * whole), n) for n in off)
            found.append({"error": total, "worst": worst})
        return clip(parameters, limit)

    banks.make = make_once  # type: ignore[assignment]
    run_of: list[loop.Run] = []
    begin = loop.Run.__init__
    summed = stage.summed

    def begun(run: loop.Run, *args: object) -> None:
        begin(run, *args)  # type: ignore[arg-type]
        run_of.append(run)

    def told(world: World, values: dict[str, float]) -> dict[str, float]:
        totals = summed(world, values)
        losses.append({n: v for n, v in totals.items() if n.endswith("_loss")})
        return totals

    stage.clip, loop.Run.__init__, stage.summed = watched, begun, told  # type: ignore[assignment, method-assign]
    out.mkdir(parents=True, exist_ok=True)
    try:
        loop.train(config, out / "run", data=Path(config.sources["heard"].path).parent / "data")
    finally:
        stage.clip, loop.Run.__init__, stage.summed = clip, begin, summed  # type: ignore[method-assign]
    return [step | {"losses": loss} for step, loss in zip(found, losses, strict=True)]


def losses_of(config: TrainConfig, out: Path, data: Path) -> list[dict[str, float]]:
    """Train; gives every step's losses by name."""
    banks.make = make_once  # type: ignore[assignment]
    found: list[dict[str, float]] = []
    summed = stage.summed

    def told(world: World, values: dict[str, float]) -> dict[str, float]:
        totals = summed(world, values)
        found.append({n: v for n, v in totals.items() if n.endswith("_loss")})
        return totals

    stage.summed = told  # type: ignore[assignment]
    try:
        loop.train(config, out, data=data)
    finally:
        stage.summed = summed
    return found


def all_recorded(configs: Sequence[TrainConfig], out: Path, reference: Path) -> list[list[dict]]:
    """Of several runs, one after another in the same processes."""
    return [recorded(config, out / str(i), reference) for i, config in enumerate(configs)]


def gathered(config: TrainConfig, out: Path) -> dict[str, set[str]]:
    """Dtypes: of layers' parameters while they are whole, of shards, of what goes in, of other parameters."""
    found: dict[str, set[str]] = {"whole": set(), "shards": set(), "input": set(), "others": set()}
    layer, encoder, objectives = DecoderLayer.forward, EncoderLayer.forward, loop.Run.losses

    def seen(forward: Callable) -> Callable:
        def called(self: nn.Module, hidden: torch.Tensor, *args: object) -> torch.Tensor:
            found["whole"] |= {str(p.dtype) for p in self.parameters()}
            found["input"].add(str(hidden.dtype))
            return forward(self, hidden, *args)

        return called

    def losses(run: loop.Run, *args: object) -> dict[str, torch.Tensor]:
        found["others"].add(str(run.net.language_model.lm_head.weight.dtype))
        layers = run.net.language_model.model.layers
        found["shards"] |= {str(p.dtype) for p in layers.parameters()}
        return objectives(run, *args)  # type: ignore[arg-type]

    DecoderLayer.forward, EncoderLayer.forward = seen(layer), seen(encoder)  # type: ignore[method-assign]
    loop.Run.losses = losses  # type: ignore[method-assign, assignment]
    try:
        loop.train(config, out, data=out / "data")
    finally:
        DecoderLayer.forward, EncoderLayer.forward = layer, encoder  # type: ignore[method-assign]
        loop.Run.losses = objectives  # type: ignore[method-assign]
    return found


def refused(configs: Sequence[TrainConfig], out: Path) -> list[str]:
    """What is said of runs that cannot begin; at last of one whose third process has another seed."""
    import torch.distributed as dist

    from afnext.errors import AfnextError

    odd = dataclasses.replace(configs[0], seed=int(dist.get_rank() == 2))
    found = []
    for number, config in enumerate([*configs, odd]):
        try:
            loop.train(config, out / str(number))
        except AfnextError as error:
            found.append(str(error))
    return found


def told_where(config: TrainConfig, folders: Sequence[Path], out: Path) -> str:
    """What is said of a run that cannot begin, each process of which is in a folder of its own."""
    import torch.distributed as dist

    from afnext.errors import AfnextError

    os.chdir(folders[dist.get_rank()])
    try:
        loop.train(config, out)
    except AfnextError as error:
        return str(error)
    return ""


def stopped(config: TrainConfig, out: Path, data: Path, name: str, step: int) -> None:
    """A run that ends on all processes when the batch of a step is wanted."""
    banks.make = make_once  # type: ignore[assignment]
    made = Batches.__getitem__

    def fails(self: Batches, plan: Plan) -> Step:
        if (self.stage.name, plan.step) == (name, step):
            raise ZeroDivisionError
        return made(self, plan)

    Batches.__getitem__ = fails  # type: ignore[method-assign]
    with suppress(ZeroDivisionError):
        loop.train(config, out, data=data)


def dropped(config: TrainConfig, out: Path) -> list[float]:
    """What dropout makes of ones before a run's first adapter, when it begins."""
    found: list[float] = []

    def train(run: loop.Run, stages: Sequence[str]) -> Path:
        layer = next(m for m in run.net.modules() if isinstance(m, LoraLinear))
        found.extend(torch.nn.functional.dropout(torch.ones(64), layer.dropout).tolist())
        return out

    before, loop.Run.train = loop.Run.train, train  # type: ignore[method-assign, assignment]
    try:
        loop.train(config, out)
    finally:
        loop.Run.train = before  # type: ignore[method-assign]
    return found


def scattered(config: TrainConfig, out: Path) -> int:
    """Train, and count the numbers of gradients that this process put into reduce-scatters."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if "reduce_scatter" in str(func):
                sizes = [x.numel() for x in torch.utils._pytree.tree_leaves(args)
                         if isinstance(x, torch.Tensor)]  # fmt: skip
                self.count += max(sizes)
            return func(*args, **(kwargs or {}))

    with Watch() as watch:
        loop.train(config, out)
    return watch.count
