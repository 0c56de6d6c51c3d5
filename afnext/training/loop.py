"""The supervised loop: a chain of stages over packed batches, resumable at any saved step."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from threading import Event
from typing import NoReturn

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.optim import Optimizer

from afnext.chat import ChatTemplate
from afnext.chat import Tokenizer as ChatTokenizer
from afnext.chat.variants import detect_variant, mark_variant
from afnext.errors import AfnextError
from afnext.hub import copy_companions, find_model
from afnext.model import AudioLanguageModel, ModelConfig
from afnext.model.checkpoint import read_json
from afnext.model.device import usable_device
from afnext.training import state
from afnext.training.batches import Batch, Batches
from afnext.training.checkpoints import Checkpoints, newest
from afnext.training.config import ADAPTER, StageConfig, TrainConfig, load_recipe
from afnext.training.data import corpus, prepare
from afnext.training.export import export, model_config, save
from afnext.training.initialise import initialise
from afnext.training.lora import activate, add_adapters, merged, save_adapter
from afnext.training.loss import Heads
from afnext.training.monitor import Journal, Quiet, task_accuracy
from afnext.training.objectives import IDLE, Objectives, objectives, share
from afnext.training.optimizer import build_optimizers, parts_of, rate_at
from afnext.training.picture import draw_losses
from afnext.training.recompute import autocast, set_activations
from afnext.training.sharding import (
    Trained,
    check_offload,
    clip,
    settle,
    shard,
    weights,
)
from afnext.training.signals import termination
from afnext.training.sources import Source
from afnext.training.targets import Words
from afnext.training.tokenizer import save_tokenizer, train_tokenizer
from afnext.training.world import Team, World, summed

CHECKPOINTS = "checkpoints"
Show = Callable[[Path, Mapping[str, Source], Path, float], None]
"""Given a model folder, held-out sources, where to write, and the longest recordings in seconds:
``afnext.evaluation.samples.write_samples``."""
HELD_OUT_BATCHES = 4
CONSTANT = "embed_positions"  # Whisper's sinusoids


def train(
    recipe: str | Path | TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    data: str | Path | None = None,
    stages: Sequence[str] = (),
    device: str | None = None,
    show: Show | None = None,
) -> Path:
    """Run a chain from data to a model folder.

    Args:
        recipe: a YAML file, a folder with a ``chain.yaml`` or a :class:`TrainConfig`.
        out: folder for the run: ``log.jsonl``, ``checkpoints/`` and the finished ``model/``.
        resume: go on from the newest checkpoint; otherwise there must be none.
        data: folder for synthesised recordings, kept between runs; by default ``out/data``.
        stages: stop after the last of these; by default run all.
        device: what to train on, ``"cpu"`` or ``"cuda"``; by default what the recipe says.
        show: called after each stage that trains answers about audio.

    Returns:
        The model folder, which ``AudioLanguageModel.from_pretrained`` and transformers load.

    Raises:
        AfnextError: the recipe is wrong, or ``out`` holds another run.

    Under ``torchrun`` every process calls it with the same arguments and a folder that all of them see; the
    first alone writes.
    """
    config = recipe if isinstance(recipe, TrainConfig) else load_recipe(recipe)
    if device is not None:
        config = replace(config, device=device)
    out = Path(out)
    if not resume and newest(out / CHECKPOINTS) is not None:
        raise AfnextError(f"{out} holds a run already; resume it or choose another folder")
    if unknown := set(stages) - {stage.name for stage in config.stages}:
        raise AfnextError(f"{config.name}: no stage is called {unknown.pop()!r}")
    world = World(config.device, config.offload)
    world.agree(config)
    check_offload(config, world)
    out.mkdir(parents=True, exist_ok=True)
    journal = (Quiet if world.rank else Journal)(out / "log.jsonl")
    try:
        folder = Path(data) if data else out / "data"
        with world.first():
            sources, held_out = prepare(config, folder, journal)
        made = Run(config, out, sources, held_out, journal, show, world).train(stages)
    finally:
        journal.close()
    world.close()
    return made


class Run:
    """One training run: the network, its heads, and where it stands."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        sources: Mapping[str, Source],
        held_out: Mapping[str, Source],
        journal: Journal,
        show: Show | None = None,
        world: World | None = None,
    ) -> None:
        self.world = World(config.device) if world is None else world
        torch.set_num_threads(config.threads or torch.get_num_threads())
        torch.manual_seed(config.seed)
        self.config, self.sources, self.held_out_sources = config, sources, held_out
        self.journal, self.out, self.show = journal, out, show
        self.model_folder = out / "model"
        self.checkpoints = Checkpoints(out / CHECKPOINTS, self.world, config.keep)
        with self.world.first():
            self.init = find_model(config.init) if config.init else None
        if self.world.rank == 0:
            self._tokenizer()
        self.world.wait()
        self.backend = Tokenizer.from_file(str(self.model_folder / "tokenizer.json"))
        self.tokenizer = ChatTokenizer.from_folder(self.model_folder)
        self.template = ChatTemplate.from_folder(self.model_folder)
        self.device = usable_device(self.world.device)
        self.words = Words(self.backend).to(self.device)
        self.times = self.words.times.tolist()
        self.net = self._network()
        add_adapters(self.net, config)
        self.net.to(self.device)
        self.heads: Heads | None = None
        if any(stage.losses.frames or stage.losses.spelling for stage in config.stages):
            self.heads = Heads(self.net.config.audio.hidden_size, config.model.pieces)
            for name, parameter in self.heads.named_parameters():
                (nn.init.zeros_ if name.endswith("bias") else nn.init.normal_)(parameter)
                parameter.data.mul_(0.05)
            self.heads.to(self.device)
        self.trained = Trained(self.net, self.heads)
        if self.world.size > 1:
            shard(self.trained, self.world.parameters(config.replicate), config.offload)
        self.parameters = {n: p for n, p in self.trained.named_parameters() if CONSTANT not in n}
        self.parts = [self._parts(stage) for stage in config.stages]
        for stage in config.stages:
            self.world.team(stage, self.net.config.text)
            self.batches(stage, sources)  # a mixture that cannot be drawn from ends the run here
        self.progress = state.Progress()

    def _tokenizer(self) -> None:
        """Write the initial folder's, or one trained on what the sources say, into the model folder."""
        if self.init is None:
            shape = self.config.model
            made = train_tokenizer(corpus(self.sources), shape.pieces, shape.times)
            save_tokenizer(made, self.model_folder)
            return
        self.model_folder.mkdir(parents=True, exist_ok=True)
        copy_companions(self.init, self.model_folder)

    def _network(self) -> AudioLanguageModel:
        if self.init is not None:
            return AudioLanguageModel.from_pretrained(self.init, dtype=torch.float32)
        net = AudioLanguageModel(
            ModelConfig.from_dict(model_config(self.config.model, self.backend))
        )
        initialise(net, self.words.times.cpu(), self.config.seed)
        return net

    def _parts(self, stage: StageConfig) -> dict[str, list[str]]:
        try:
            return parts_of(self.parameters, stage.train, stage.freeze)
        except AfnextError as error:
            raise AfnextError(f"{stage.name}: {error}") from None

    def train(self, stages: Sequence[str] = ()) -> Path:
        """Run or resume the stages, up to the last of ``stages`` if given, then export."""
        found = self.checkpoints.restore(self.trained)
        self.progress = found or self.progress
        count = sum(p.numel() for p in self.net.parameters())
        self.journal.write("start", parameters=count, vocabulary=self.tokenizer.vocab_size)
        names = [stage.name for stage in self.config.stages]
        last = max((names.index(name) for name in stages), default=len(names) - 1)
        with termination() as stop, closing(self.checkpoints):
            for index in range(self.progress.stage, last + 1):
                self._stage(index, stop)
            self.checkpoints.finish()
        return self.export()

    def export(self) -> Path:
        """The model folder with the weights as they are."""
        net, lora = self.net, self.config.lora
        if self.world.size > 1 or lora:
            whole = weights(self.trained)
            if self.world.rank:
                return self.model_folder
            own = {n[4:]: w for n, w in whole.items() if n.startswith("net.")}
            if lora:
                save_adapter(own, lora, self.out / "adapter", self._base())
            with torch.random.fork_rng(
                devices=()
            ):  # what is drawn here must not change what dropout draws
                net = AudioLanguageModel(self.net.config)
            net.generation_config = self.net.generation_config
            net.load_state_dict(merged(own, lora))
        if self.init is not None:
            save(net, self.model_folder, self.config.export_dtype)
            variant = detect_variant(self.init, read_json(self.init / "config.json"))
            mark_variant(self.model_folder, variant.name)
        else:
            export(net, self.backend, self.model_folder, self.config.export_dtype)
        return self.model_folder

    def _base(self) -> str | None:
        """The model that the chain began with, if nothing but adapters was trained."""
        patterns = (pattern for stage in self.config.stages for pattern in stage.train)
        return self.config.init if all(ADAPTER in pattern for pattern in patterns) else None

    def _stage(self, index: int, stop: Event) -> None:
        config, stage, progress = self.config, self.config.stages[index], self.progress
        if progress.stage != index:
            progress.stage, progress.step = index, 0
        for line in describe(self.parameters, self.parts[index], stage):
            self.journal.say(line)
        trained = {n for pattern in stage.train for n in self.parts[index][pattern]}
        for name, parameter in self.trained.named_parameters():
            parameter.requires_grad_(name in trained)
        activate(self.net, config, index)
        set_activations(self.net, stage.activations)
        optimizers = build_optimizers(self.parameters, self.parts[index], stage)
        if progress.step:
            self.checkpoints.restore_optimizers(self.trained, optimizers)
        else:
            progress.norm = 0.0
        team = self.world.team(stage, self.net.config.text)
        batches = self.batches(stage, self.sources, team)
        held_out = self._held_out(stage)
        totals: dict[str, float] = defaultdict(float)
        left_out: dict[str, int] = defaultdict(int)
        on_cpu = self.device.type == "cpu"
        workers = 0 if on_cpu else (config.workers or max(1, (os.cpu_count() or 1) - 1))
        began = time.perf_counter()
        for step, made in enumerate(batches.ahead(progress.step, workers), progress.step):
            waited = time.perf_counter() - began
            rate = rate_at(stage, step)
            for group in chain.from_iterable(o.param_groups for o in optimizers):
                group["lr"] = rate * group["peak"]
            losses = {f"{name}_loss": 0.0 for name in objectives(stage)}
            for batch in share(made.batches, stage, team, self.world):
                with autocast(self.device.type, config.bf16, stage.activations):
                    parts = self.trained(self.losses, batch.to(self.device), stage)
                together = torch.stack(list(parts.values()))
                if together.requires_grad:
                    together.sum().backward()
                else:  # of a text alone an adaptor learns nothing
                    settle(self.trained)
                for name, part in zip(parts, together.tolist(), strict=True):
                    if name != IDLE:
                        losses[f"{name}_loss"] += part
            for why, count in made.left_out.items():
                left_out[why] += count
            norm = clip([self.parameters[n] for n in sorted(trained)], stage.clip)
            finite = bool(torch.isfinite(norm))
            progress.step = step + 1
            usable = progress.usable(float(norm), finite, stage.spike, stage.name)
            for optimizer in optimizers:
                if usable:
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            spent = time.perf_counter() - began
            began += spent
            progress.seconds += spent
            seen = losses | {
                "tokens": sum(len(batch.packed.ids) for batch in made.batches) / team.size,
                "audio": sum(batch.seconds for batch in made.batches) / team.size,
                "wait": waited / self.world.size,
                "stop": float(stop.is_set()),
            }
            seen = summed(self.world, seen)
            losses = {name: seen[name] for name in losses}
            counts = (losses if usable else {}) | {
                "steps": 1, "seconds": spent, "skipped": int(not usable),
                "tokens": seen["tokens"], "audio": seen["audio"], "wait": seen["wait"],
            }  # fmt: skip
            for key, value in counts.items():
                totals[key] += value
            loss_now = sum(losses.values())
            self.journal.advance(f"{stage.name} loss {loss_now:.2f}", step + 1, stage.steps)
            if self.journal.due() or step + 1 == stage.steps:
                self._report(stage, totals, rate)
                totals.clear()
            last = step + 1 == stage.steps
            if config.evaluate_every and ((step + 1) % config.evaluate_every == 0 or last):
                self._evaluate(stage, held_out)
                began = time.perf_counter()
            if seen["stop"]:
                self._stopped(stage, optimizers)
            if config.save_every and (step + 1) % config.save_every == 0:
                self.checkpoints.save(self.trained, optimizers, progress)
        for place, others in self.world.gathered((team.link.rank, dict(left_out)))[1:]:
            for why, count in others.items() if place == 0 else ():  # a team has it in common
                left_out[why] += count
        if left_out:
            self.journal.write("left out", stage=stage.name, **left_out)
        progress.stage, progress.step = index + 1, 0
        self.checkpoints.save(self.trained, [], progress)
        self._show(stage)

    def _stopped(self, stage: StageConfig, optimizers: Sequence[Optimizer]) -> NoReturn:
        """Keep what is done, and end."""
        self.checkpoints.save(self.trained, optimizers, self.progress)
        self.checkpoints.finish()
        raise AfnextError(
            f"stopped by a signal after step {self.progress.step} of {stage.name}, which is kept: "
            "--resume goes on"
        )

    def _show(self, stage: StageConfig) -> None:
        """What a stage came to, for somebody to look at."""
        if self.world.rank == 0:
            draw_losses(self.journal.path, self.out / "losses.svg")
        heard = stage.losses.answer and stage.hearing == "audio"
        if self.show and heard and self.held_out_sources:
            path, folder = self.out / f"samples-{stage.name}.md", self.export()
            if self.world.rank == 0:
                self.show(folder, self.held_out_sources, path, stage.audio_seconds)
            self.world.wait()

    def batches(
        self, stage: StageConfig, sources: Mapping[str, Source], team: Team | None = None
    ) -> Batches:
        """What a stage draws from some sources."""
        words = self.words.to(torch.device("cpu"))
        return Batches(self.config, stage, sources, self.tokenizer, self.template, words, team)

    def _held_out(self, stage: StageConfig) -> list[Batch]:
        if not (self.held_out_sources and self.config.evaluate_every and stage.losses.answer):
            return []
        batches = self.batches(stage, self.held_out_sources)
        return [batches.batch(-1 - i).to(self.device) for i in range(HELD_OUT_BATCHES)]

    def losses(self, batch: Batch, stage: StageConfig) -> dict[str, Tensor]:
        """The weighted objectives of one batch, by name: its shares of the step's."""
        return Objectives(self.net, self.heads, self.words, self.times, stage)(batch)

    def _report(self, stage: StageConfig, totals: dict[str, float], rate: float) -> None:
        steps, seconds = totals["steps"] - totals["skipped"], totals["seconds"]
        self.journal.write(
            "train",
            stage=stage.name,
            step=self.progress.step,
            minutes=self.progress.seconds / 60,
            **{k: v / steps for k, v in totals.items() if k.endswith("_loss")},
            rate=rate,
            tokens_per_second=totals["tokens"] / seconds,
            audio_seconds_per_second=totals["audio"] / seconds,
            data_wait=totals["wait"] / seconds,
            skipped=totals["skipped"],
        )

    def _evaluate(self, stage: StageConfig, batches: Sequence[Batch]) -> None:
        if batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
                scores = self.trained(task_accuracy, self.net, batches, self.words)
            settle(self.trained)
            self.journal.write("held-out", stage=stage.name, step=self.progress.step, **scores)


def describe(
    parameters: Mapping[str, nn.Parameter], parts: Mapping[str, Sequence[str]], stage: StageConfig
) -> list[str]:
    """Lines of a table: each pattern, how many numbers it has, its learning rate or that it is frozen."""
    lines = [f"{stage.name}: {stage.steps} steps"]
    for pattern, names in parts.items():
        count = sum(parameters[name].numel() for name in names)
        rate = stage.train.get(pattern)
        lines.append(f"  {pattern:40} {count:>12,}  {'frozen' if rate is None else f'{rate:g}'}")
    return lines
