"""The supervised loop: stages of steps over packed batches, resumable at any saved step."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils import clip_grad_norm_

from afnext.errors import AfnextError
from afnext.model import AudioLanguageModel, ModelConfig
from afnext.training import forward, state
from afnext.training.config import DataConfig, StageConfig, TrainConfig, load_recipe
from afnext.training.data import Batch, Vocabulary, draw, frame_targets
from afnext.training.export import export, model_config
from afnext.training.initialise import initialise
from afnext.training.loss import FrameHead, alignment_loss, answer_loss, clock_loss, frame_loss
from afnext.training.monitor import Journal, held_out_batches, task_accuracy
from afnext.training.optimizer import build_optimizers, rate_at
from afnext.training.synthesis import CLASSES, ClipSet, generate, open_clips
from afnext.training.tokenizer import train_tokenizer


def train(
    recipe: str | Path | TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    data: str | Path | None = None,
) -> Path:
    """Run a recipe from data to a model folder.

    Args:
        recipe: a YAML file or a :class:`TrainConfig`.
        out: folder for the run: ``log.jsonl``, ``checkpoint.pt`` and the finished ``model/``.
        resume: go on from ``out/checkpoint.pt``; otherwise that file must not exist.
        data: folder for the synthesised clips, kept between runs; by default ``out/data``.

    Returns:
        The model folder, which ``AudioLanguageModel.from_pretrained`` and transformers load.

    Raises:
        AfnextError: the recipe is wrong, or ``out`` holds another run.
    """
    config = recipe if isinstance(recipe, TrainConfig) else load_recipe(recipe)
    out = Path(out)
    if (out / "checkpoint.pt").exists() and not resume:
        raise AfnextError(f"{out} holds a run already; resume it or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "log.jsonl")
    try:
        folder = Path(data) if data else out / "data"
        clips = _clips(config.data, folder / "train", config.workers, journal)
        held_out = _clips(config.held_out, folder / "held-out", config.workers, journal)
        return Run(config, out, clips, held_out, journal).train()
    finally:
        journal.close()


def _clips(wanted: DataConfig, folder: Path, workers: int, journal: Journal) -> list[ClipSet]:
    for seconds, done in generate(folder, wanted.clips, wanted.seed, workers):
        journal.advance(f"synthesis, {seconds:g} s clips", done, wanted.clips[seconds])
    return [s for s in open_clips(folder) if s.seconds in wanted.clips]


class Run:
    """One training run: the network, its heads, and where it stands."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        clips: Sequence[ClipSet],
        held_out: Sequence[ClipSet],
        journal: Journal,
    ) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.clips, self.journal = config, clips, journal
        self.model_folder, self.checkpoint = out / "model", out / "checkpoint.pt"
        words, shape = config.tokenizer, config.model
        self.tokenizer: Tokenizer = train_tokenizer(words.pieces, words.clips, words.seed)
        self.vocab = Vocabulary(self.tokenizer)
        self.net = AudioLanguageModel(ModelConfig.from_dict(model_config(shape, self.tokenizer)))
        initialise(self.net, self.vocab, shape.heads, shape.kv_heads, config.seed)
        self.head = FrameHead(shape.audio_width)
        nn.init.normal_(self.head.weight, 0, 0.05)
        nn.init.zeros_(self.head.bias)
        self.all = nn.ModuleDict({"net": self.net, "head": self.head})
        self.held_out = held_out_batches(held_out, self.vocab)
        self.progress = state.Progress()

    def train(self) -> Path:
        """Run or resume every stage, then export."""
        saved = state.load(self.checkpoint) if self.checkpoint.exists() else None
        if saved:
            self.all.load_state_dict(saved["weights"])
            self.progress = state.Progress(**saved["progress"])
            torch.set_rng_state(saved["random"])
        count = sum(p.numel() for p in self.net.parameters())
        self.journal.write("start", parameters=count, vocabulary=self.tokenizer.get_vocab_size())
        for index in range(self.progress.stage, len(self.config.stages)):
            self._stage(index, saved["optimizers"] if saved else None)
            saved = None
        return export(self.net, self.tokenizer, self.model_folder, self.config.export_dtype)

    def _stage(self, index: int, optimizer_states: list | None) -> None:
        config, stage, progress = self.config, self.config.stages[index], self.progress
        if progress.stage != index:
            progress.stage, progress.step = index, 0
        for name, parameter in self.all.named_parameters():
            fixed = "embed_positions" in name
            parameter.requires_grad_(not fixed and re.search(stage.trainable, name) is not None)
        optimizers = build_optimizers(self.all.named_parameters(), stage.learning_rate)
        for optimizer, values in zip(optimizers, optimizer_states or [], strict=False):
            optimizer.load_state_dict(values)
        trainable = [p for p in self.all.parameters() if p.requires_grad]
        totals: dict[str, float] = defaultdict(float)
        began = time.perf_counter()
        for step, batch in enumerate(self._batches(stage), progress.step):
            rate = rate_at(stage, step)
            for group in (g for o in optimizers for g in o.param_groups):
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                parts = self.losses(batch, stage)
            loss = torch.stack(list(parts.values())).sum()
            loss.backward()
            norm = clip_grad_norm_(trainable, 1.0)
            if torch.isfinite(norm):
                for optimizer in optimizers:
                    optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            progress.step = step + 1
            spent = time.perf_counter() - began
            began += spent
            progress.seconds += spent
            rows = len(batch.events)
            counts = {
                **{f"{k}_loss": v.item() for k, v in parts.items()},
                "steps": 1,
                "seconds": spent,
                "skipped": int(not torch.isfinite(norm)),
                "tokens": rows * (batch.audio_tokens + batch.text.ids.shape[1]),
                "audio": rows * batch.seconds,
            }
            for key, value in counts.items():
                totals[key] += value
            self.journal.advance(f"{stage.name} loss {loss.item():.2f}", step + 1, stage.steps)
            if self.journal.due():
                self._report(stage, totals, rate)
                totals.clear()
            if config.evaluate_every and (step + 1) % config.evaluate_every == 0:
                self._evaluate(stage)
            if config.save_every and (step + 1) % config.save_every == 0:
                state.save(self.checkpoint, self.all, optimizers, progress)
        progress.stage, progress.step = index + 1, 0
        state.save(self.checkpoint, self.all, [], progress)

    def _batches(self, stage: StageConfig) -> Iterator[Batch]:
        """The batches of the remaining steps, each made while the one before is in use."""
        steps = range(self.progress.step, stage.steps)
        with ThreadPoolExecutor(1) as pool:
            made = [
                pool.submit(draw, self.clips, stage, step, str(self.config.seed), self.vocab)
                for step in steps[:1]
            ]
            for step in steps:
                batch = made.pop().result()
                if step + 1 < stage.steps:
                    made.append(
                        pool.submit(
                            draw, self.clips, stage, step + 1, str(self.config.seed), self.vocab
                        )
                    )
                yield batch

    def losses(self, batch: Batch, stage: StageConfig) -> dict[str, torch.Tensor]:
        """The weighted objectives of one batch, by name."""
        weights, parts = stage.losses, {}
        encoded = forward.encode(self.net, batch)
        targets = frame_targets(batch.events, batch.audio_tokens)
        if weights.frames:
            parts["frame"] = weights.frames * frame_loss(self.head(encoded), targets)
        if weights.answer or weights.alignment or weights.clock:
            audio = forward.adapt(self.net, encoded)
            if weights.alignment:
                words = self.net.language_model.model.embed_tokens(self.vocab.labels).mean(1)
                active = targets[..., : len(CLASSES)]
                parts["alignment"] = weights.alignment * alignment_loss(audio, words, active)
            if weights.clock:
                times = self.net.language_model.model.embed_tokens(self.vocab.times)
                parts["clock"] = weights.clock * clock_loss(audio, times)
            if weights.answer:
                logits = forward.answer_logits(self.net, audio, batch)
                learnt = batch.text.targets >= 0
                parts["answer"] = weights.answer * answer_loss(
                    logits, batch.text.targets[learnt], batch.text.weights[learnt], self.vocab.times
                )
        return parts

    def _report(self, stage: StageConfig, totals: dict[str, float], rate: float) -> None:
        steps, seconds = totals["steps"], totals["seconds"]
        self.journal.write(
            "train",
            stage=stage.name,
            step=self.progress.step,
            minutes=self.progress.seconds / 60,
            **{k: v / steps for k, v in totals.items() if k.endswith("_loss")},
            rate=rate,
            tokens_per_second=totals["tokens"] / seconds,
            audio_seconds_per_second=totals["audio"] / seconds,
            skipped=totals["skipped"],
        )

    def _evaluate(self, stage: StageConfig) -> None:
        if stage.losses.answer:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
                scores = task_accuracy(self.net, self.held_out, self.vocab)
            self.journal.write("held-out", stage=stage.name, step=self.progress.step, **scores)
