"""The supervised loop: a chain of stages over packed batches, resumable at any saved step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from afnext.chat import Tokenizer as ChatTokenizer
from afnext.chat.variants import detect_variant, template_of
from afnext.errors import AfnextError, CheckpointError
from afnext.hub import find_model
from afnext.model import AudioLanguageModel, ModelConfig
from afnext.model.checkpoint import Weights, read_json
from afnext.model.config import adapter_of_run
from afnext.model.device import usable_device
from afnext.model.revision import revision
from afnext.training.config import ADAPTER, RecipeError, StageConfig, TrainConfig, mixture_of
from afnext.training.data.batches import Batch, Batches
from afnext.training.data.broken import LISTED, Broken, Sample
from afnext.training.data.prepare import corpus, prepare
from afnext.training.data.sources import Source
from afnext.training.data.targets import Words
from afnext.training.data.tokenizer import save_tokenizer, train_tokenizer
from afnext.training.distributed.sharding import Trained, check_offload, shard, weights
from afnext.training.distributed.world import Team, World
from afnext.training.network.initialise import initialise
from afnext.training.network.lora import add_adapters, merged, save_adapter
from afnext.training.network.loss import heads_of
from afnext.training.network.objectives import Objectives
from afnext.training.network.optimizer import parts_of_stage
from afnext.training.recipe import load_recipe, told_of
from afnext.training.run import state
from afnext.training.run.checkpoints import CHECKPOINTS, Checkpoints, newest, read_progress
from afnext.training.run.export import appearing, model_config, save_model
from afnext.training.run.export_checkpoint import TOKENIZER
from afnext.training.run.kept_recipe import changes, keep, resume_refusal
from afnext.training.run.meters import SourceLosses
from afnext.training.run.monitor import Journal, Quiet
from afnext.training.run.records import START
from afnext.training.run.signals import termination
from afnext.training.run.tensorboard import Board
from afnext.training.stage import StageRun

Show = Callable[[Path, Mapping[str, Source], Path, float, bool], None]
"""Given a model folder, sources, where to write, the longest recordings in seconds, and whether the sources
are held out or those of training: ``afnext.evaluation.samples.write_samples``."""
CONSTANT = "embed_positions"  # Whisper's sinusoids
WHISPER = "encoder."  # begins names of its encoder's, in transformers' folders behind "model."


def train(
    recipe: str | Path | TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    data: str | Path | None = None,
    stages: Sequence[str] = (),
    device: str | None = None,
    show: Show | None = None,
    tensorboard: bool = False,
) -> Path:
    """Run a chain from data to a model folder.

    Args:
        recipe: a YAML file, a folder with a ``chain.yaml`` or a :class:`TrainConfig`.
        out: folder for the run: ``recipe.json``, ``log.jsonl``, ``checkpoints/`` and the finished ``model/``.
        resume: go on from the newest checkpoint; otherwise there must be none. What the recipe changes of the
            one that the run had is told. Where ``torchrun`` starts a run again (``--max-restarts``), it goes
            on by itself.
        data: folder for synthesised recordings, kept between runs; by default ``out/data``.
        stages: stop after the last of these; by default run all.
        device: what to train on, ``"cpu"`` or ``"cuda"``; by default what the recipe says.
        show: called after each stage that trains answers about audio, with what is held out; a run of one
            process that holds nothing out gives the stage's own sources.
        tensorboard: write the log's numbers for TensorBoard too, under ``out/tensorboard``.

    Returns:
        The model folder, which ``AudioLanguageModel.from_pretrained`` and transformers load.

    Raises:
        AfnextError: the recipe is wrong, ``out`` holds another run, or another process died or ended; with
            its rank and what is known of why.

    Under ``torchrun`` every process calls it with the same arguments and a folder that all of them see; the
    first alone writes. There an error is the end of the process too, whoever catches it: 15 seconds later it
    exits with 1, as groups that have lost a process may never close. Such a run is one to start again.
    """
    config = recipe if isinstance(recipe, TrainConfig) else load_recipe(recipe)
    if device is not None:
        config = replace(config, device=device)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise AfnextError(f"out: {out} is a file, and a run needs a folder")
    if unknown := set(stages) - {stage.name for stage in config.stages}:
        raise AfnextError(f"{config.name}: no stage is called {unknown.pop()!r}")
    alike = {
        "device": config.device,
        "recipe": repr(config),
        "choice of stages": repr([*stages]),
        "choice to resume": repr(resume),
        "data folder": str(data),
        "choice of tensorboard": repr(tensorboard),
    }
    world = World(config.device, config.timeout, config.offload, alike)
    try:
        check_offload(config, world)
        why = "" if world.rank else refusal(out, resume) or resume_refusal(config, out)
        if why := world.gathered(why)[0]:
            raise AfnextError(why)
        out.mkdir(parents=True, exist_ok=True)
        if not world.rank and newest(out / CHECKPOINTS) is None:
            (out / LISTED).unlink(missing_ok=True)  # of a run that never began
        journal = Quiet(out / "log.jsonl") if world.rank else Journal(out / "log.jsonl")
        try:
            if tensorboard and not world.rank:
                kept = newest(out / CHECKPOINTS)
                journal.board = Board(out, config, None if kept is None else read_progress(kept))
            folder = Path(data) if data else out / "data"
            with told_of(recipe):
                with world.first():
                    limits = {name: source.broken_limit for name, source in config.sources.items()}
                    broken = Broken(out, limits, world.rank == 0)
                    sources, held_out = prepare(config, folder, journal, broken)
                run = Run(config, out, sources, held_out, journal, show, world)
            if not world.rank:  # a recipe that never began is not one that changed
                for change in changes(config, out):
                    journal.say(change)
                keep(config, out)
                run.keep_tokenizer()
            made = run.train(stages)
        finally:
            journal.close()
        world.close()
    except BaseException as error:
        if (told := world.reason(error)) is error:
            raise
        raise told from error
    return made


def refusal(out: Path, resume: bool) -> str:
    """Why a run cannot begin in a folder; empty where it can.

    A run that ``torchrun`` starts again after one of its processes died goes on, if the same ``torchrun``
    began it.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    started = run if run != "none" else f"process {os.getppid()}"
    mark = out / "torchrun"
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    ours = again and mark.exists() and mark.read_text() == started
    if not (resume or ours) and newest(out / CHECKPOINTS) is not None:
        return f"{out} holds a run already; resume it or choose another folder"
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        out.mkdir(parents=True, exist_ok=True)
        mark.write_text(started)
    return ""


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
        limits = {name: source.broken_limit for name, source in sources.items()}
        with self.world.first():
            self.broken = Broken(out, limits, self.world.rank == 0)
            self.note_broken(
                Sample(name, error.where, error.why)
                for name, source in sources.items()
                for error in source.skipped.errors
            )
        with self.world.first():
            self.init = _found(config.init, "init") if config.init else None
        if self.init is not None:
            self._alike("init", self.init)
        self._tokenizer()
        self.device = usable_device(self.world.device)
        self.words = Words(self.backend).to(self.device)
        self.times = self.words.times.tolist()
        self.net = self._network()
        add_adapters(self.net, config)
        self.net.to(self.device)
        self.heads = heads_of(config, self.net.config)
        if self.heads is not None:
            self.heads.to(self.device)
        self.trained = Trained(self.net, self.heads)
        if self.world.size > 1:
            mesh = self.world.parameters(config.replicate)
            shard(self.trained, mesh, bf16=config.bf16, offload=config.offload)
        self.parameters = {n: p for n, p in self.trained.named_parameters() if CONSTANT not in n}
        self.parts = [parts_of_stage(self.parameters, stage) for stage in config.stages]
        for stage in config.stages:
            self.world.team(stage, self.net.config.text)
            try:  # a mixture that cannot be drawn from ends the run here
                self.batches(stage, sources)
                self.watched(stage)
            except AfnextError as error:
                raise RecipeError(f"{stage.name}: {error}") from None
        self.progress = state.Progress()
        self.by_source: SourceLosses | None = None
        # Each process has tokens of its own, whatever it shares: dropout takes others from each. What must be
        # the same on all was drawn above.
        torch.manual_seed(config.seed + self.world.rank)

    def _tokenizer(self) -> None:
        """Read the initial folder's; without one that which the run has, or the first process trains one on
        what the sources say.
        """
        with TemporaryDirectory() as temporary:
            folder = self.init or Path(temporary)
            if self.init is None:
                kept = self.out / TOKENIZER / "tokenizer.json"
                shape, text = self.config.model, ""
                if self.world.rank == 0 and kept.exists() and self.checkpoints.newest is not None:
                    text = kept.read_text(encoding="utf-8")
                elif self.world.rank == 0:
                    made = train_tokenizer(corpus(self.sources), shape.pieces, shape.times)
                    text = made.to_str()
                save_tokenizer(Tokenizer.from_str(self.world.gathered(text)[0]), folder)
            self.tokenizer = ChatTokenizer.from_folder(folder)
            variant = detect_variant(folder, read_json(folder / "config.json"))
            self.template = template_of(folder, variant, self.tokenizer)
            self.backend = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def keep_tokenizer(self) -> None:
        """In the run's folder, where no other has it: what its checkpoints are models with, and stays as it
        is where there are any.
        """
        folder = self.out / TOKENIZER
        if self.init is not None or (self.checkpoints.newest is not None and folder.exists()):
            return
        with appearing(folder) as made:
            save_tokenizer(self.backend, made)

    def _network(self) -> AudioLanguageModel:
        if self.init is not None:
            return AudioLanguageModel.from_pretrained(self.init, dtype=torch.float32)
        net = AudioLanguageModel(
            ModelConfig.from_dict(model_config(self.config.model, self.backend))
        )
        initialise(net, self.words.times.cpu(), self.config.seed)
        if self.config.audio_tower and self.checkpoints.newest is None:
            folder = _found(self.config.audio_tower, "audio_tower")
            self._alike("audio_tower", folder)
            given = Weights.open(folder)
            part = given.part("audio_tower.", torch.float32) or given.part(WHISPER, torch.float32)
            if not part:
                raise RecipeError(
                    f"audio_tower: {self.config.audio_tower} has none, nor a Whisper's encoder"
                )
            try:
                net.audio_tower.load_state_dict(part)
            except RuntimeError:
                raise RecipeError(
                    f"audio_tower: that of {self.config.audio_tower} has another geometry than model says"
                ) from None
        return net

    def _alike(self, key: str, folder: Path) -> None:
        """Shards of different models would make one of no sense."""
        found = self.world.gathered(revision(folder))
        for rank, other in enumerate(found):
            if other != found[0]:
                raise RecipeError(
                    f"{key}: {folder} of rank {rank} has other weights than that of rank 0"
                )

    def train(self, stages: Sequence[str] = ()) -> Path:
        """Run or resume the stages, up to the last of ``stages`` if given, then export."""
        found = self.checkpoints.restore(self.trained)
        self.progress = found or self.progress
        count = sum(p.numel() for p in self.net.parameters())
        names = [stage.name for stage in self.config.stages]
        done: dict[str, str | int] = {}
        if self.progress.stage < len(names):
            stage, step = self.progress.stage, self.progress.step
            if step == self.config.stages[stage].steps and stage + 1 < len(names):
                stage, step = stage + 1, 0  # whose own beginning was not kept any more
            done = {"stage": names[stage], "step": step}
        self.journal.write(START, parameters=count, vocabulary=self.tokenizer.vocab_size, **done)
        for line in self._apart():
            self.journal.say(line)
        last = max((names.index(name) for name in stages), default=len(names) - 1)
        with termination() as stop, closing(self.checkpoints):
            for index in range(self.progress.stage, last + 1):
                self._stage(index, stop)
            self.checkpoints.finish()
        return self.export()

    def _apart(self) -> list[str]:
        """What the number of parameters and the stages' tables do not both count."""

        def count(module: nn.Module, part: str = "") -> int:
            return sum(p.numel() for name, p in module.named_parameters() if part in name)

        lines = [
            f"  of them {count(self.net, CONSTANT):,} are the encoder's positions: fixed, in no table"
        ]
        if adapters := count(self.net, ADAPTER):
            lines.append(
                f"  of them {adapters:,} are adapters: in the tables of stages that train them"
            )
        if self.heads is not None:
            lines.append(
                f"  besides there are {count(self.heads):,} of heads, which are thrown away"
            )
        return lines

    def note_broken(self, samples: Iterable[Sample]) -> None:
        """Count, list and tell what cannot be read; all processes of the run call it with the same.

        Raises:
            AfnextError: it is more than the recipe allows.
        """
        for sample in self.broken.add(samples):
            self.journal.say(f"left out: {sample.source}: {sample.key}: {sample.why}")

    def export(self) -> Path:
        """The model folder with the weights as they are."""
        net, lora = self.net, self.config.lora
        if self.world.size > 1 or lora:
            whole = weights(self.trained)
            if self.world.rank:
                return self.model_folder
            own = {n[4:]: w for n, w in whole.items() if n.startswith("net.")}
            if lora:
                save_adapter(own, lora, adapter_of_run(self.out), self._base())
            with torch.random.fork_rng(
                devices=()
            ):  # what is drawn here must not change what dropout draws
                net = AudioLanguageModel(self.net.config)
            net.generation_config = self.net.generation_config
            net.load_state_dict(merged(own, lora))
        dtype = self.config.export_dtype
        return save_model(net, self.init, self.backend, self.model_folder, dtype)

    def _base(self) -> str | None:
        """The model that the chain began with, if nothing but adapters was trained."""
        patterns = (pattern for stage in self.config.stages for pattern in stage.train)
        return self.config.init if all(ADAPTER in pattern for pattern in patterns) else None

    def _stage(self, index: int, stop: Event) -> None:
        StageRun(self, index, stop).train()

    def batches(
        self, stage: StageConfig, sources: Mapping[str, Source], team: Team | None = None
    ) -> Batches:
        """What a stage draws from some sources."""
        words = self.words.to(torch.device("cpu"))
        return Batches(self.config, stage, sources, self.tokenizer, self.template, words, team)

    def watched(self, stage: StageConfig) -> Batches | None:
        """What a stage is watched by: its mixture of the held-out sources, as far as there are such."""
        if not (self.config.evaluate_every and stage.losses.answer):
            return None
        shares = {
            name: share
            for name, share in mixture_of(stage, self.config.stages).items()
            if name in self.held_out_sources
        }
        if not any(shares.values()):
            return None
        most = {name: n for name, n in stage.per_recording_of.items() if name in shares}
        kept = replace(stage, mixture=shares, mixture_of={}, per_recording_of=most)
        return self.batches(kept, self.held_out_sources)

    def losses(self, batch: Batch, stage: StageConfig) -> dict[str, Tensor]:
        """The weighted objectives of one batch, by name: its shares of the step's."""
        return Objectives(self.net, self.heads, self.words, self.times, stage, self.by_source)(
            batch
        )


def _found(model: str, key: str) -> Path:
    """The folder of a model that a recipe names under ``key``."""
    try:
        return find_model(model)
    except CheckpointError as error:
        raise RecipeError(f"{key}: {error}") from None
