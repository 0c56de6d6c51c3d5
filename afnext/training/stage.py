"""A stage under way: its steps one after another, what is watched meanwhile, and what is kept."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from threading import Event
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from afnext.errors import AfnextError
from afnext.parallel import GroupLink
from afnext.training.config import StageConfig, mixture_of
from afnext.training.data.batches import Batch, Step
from afnext.training.distributed.sharding import clip, retake, settle
from afnext.training.distributed.world import summed
from afnext.training.network.flops import forward_flops, measured_peak
from afnext.training.network.lora import activate
from afnext.training.network.objectives import IDLE, objectives, share, sum_of
from afnext.training.network.optimizer import build_optimizers, rate_at
from afnext.training.network.recompute import autocast, set_activations
from afnext.training.run.meters import Meters, SourceLosses
from afnext.training.run.monitor import task_accuracy
from afnext.training.run.picture import draw_losses
from afnext.training.run.spans import said
from afnext.training.run.state import Cursors

if TYPE_CHECKING:
    from afnext.training.loop import Run

HELD_OUT_BATCHES = 4
SHOWN_SECONDS = 30.0  # of a recording that was trained on
LEISURE = 6.0
"""Timeouts that a process may take for a checkpoint, an export or answers to look at."""
EMPTY = 100
"""Batches in a row, of all processes, without anything that end a run."""


class StageRun:
    """A stage of a run, from where its progress says.

    Args:
        run: the run, whose network is trained and whose progress moves.
        index: of the stage in its chain.
        stop: set where the run is to end after the step under way.
    """

    def __init__(self, run: Run, index: int, stop: Event) -> None:
        self.run, self.index, self.stop = run, index, stop
        self.stage, self.progress = run.config.stages[index], run.progress
        if self.progress.stage != index:
            self.progress.stage, self.progress.step = index, 0
        for line in describe(run.parameters, run.parts[index], self.stage):
            run.journal.say(line)
        self.names = {n for pattern in self.stage.train for n in run.parts[index][pattern]}
        for name, parameter in run.trained.named_parameters():
            parameter.requires_grad_(name in self.names)
        retake(run.trained)
        activate(run.net, run.config, index)
        set_activations(run.net, self.stage.activations)
        self.optimizers = build_optimizers(run.parameters, run.parts[index], self.stage)
        if self.progress.step:
            run.checkpoints.restore_optimizers(run.trained, self.optimizers)
        else:
            self.progress.norm, self.progress.cursors = 0.0, Cursors()
        self.team = run.world.team(self.stage, run.net.config.text)
        dtype = torch.bfloat16 if run.config.bf16 else torch.float32
        peak = 1e12 * run.config.peak_tflops or measured_peak(run.device, dtype)
        self.meters = Meters(peak * run.world.size)
        self.too_long = 0  # conversations beyond the stage's context
        self.began, self.first = time.perf_counter(), self.progress.step
        self.used = 0.0  # learnt tokens and seconds of audio
        self.empty = 0  # batches in a row
        self.told = False  # by any process, to end

    def train(self) -> None:
        """All steps that are left, then the checkpoint after them."""
        run, stage, progress = self.run, self.stage, self.progress
        batches = run.batches(stage, run.sources, self.team)
        self.by_source = run.by_source = SourceLosses(batches.mixture.names, run.device)
        for line in batches.mixture.left_out():
            run.journal.say(f"{stage.name}: {line}")
        held_out = self._held_out()
        on_cpu = run.device.type == "cpu"
        workers = 0 if on_cpu else (run.config.workers or max(1, (os.cpu_count() or 1) - 1))
        depth = run.config.prefetch
        self._waits_for_data()
        began = self.began = time.perf_counter()
        for made in batches.ahead(progress.step, progress.cursors, depth, min(workers, depth)):
            began = self._step(made, began)
            step = progress.step
            self._beside(f"between steps {step - 1} and {step} of {stage.name}")
            if run.journal.due(step, stage.steps):
                self._report()
            every = run.config.evaluate_every
            # Who is told to end has little time: what is kept comes first.
            if every and not self.told and (step % every == 0 or step == stage.steps):
                self._evaluate(held_out)
                began = time.perf_counter()
            if self.told:
                self._stopped()
            if step == stage.steps:  # before it is kept: a run that goes on comes here again
                self._report_left_out()
                self._check_used()
            if run.config.save_every and step % run.config.save_every == 0:
                run.checkpoints.save(run.trained, self.optimizers, progress)
            self._waits_for_data()
        self._beside(f"at the end of {stage.name}")
        progress.stage, progress.step = self.index + 1, 0
        run.checkpoints.save(run.trained, [], progress)
        self._show()

    def _waits_for_data(self) -> None:
        what = f"waiting for the data of step {self.progress.step} of {self.stage.name}"
        self.run.world.watch.at(what, self.run.config.timeout)

    def _beside(self, what: str) -> None:
        """Of what is written and looked at beside steps, which takes longer than they do."""
        self.run.world.watch.at(what, LEISURE * self.run.config.timeout)

    def _step(self, made: Step, began: float) -> float:
        """One step, which ``began`` when the one before ended; gives when it ended."""
        waited = time.perf_counter() - began
        run, stage, progress = self.run, self.stage, self.progress
        where = f"at step {progress.step} of {stage.name}"
        run.world.watch.at(where, run.config.timeout)
        rate = rate_at(stage, progress.step)
        for group in chain.from_iterable(o.param_groups for o in self.optimizers):
            group["lr"] = rate * group["peak"]
        losses = self._gradients(made)
        norm, usable = self._update()
        progress.cursors = made.cursors
        ended = time.perf_counter()
        progress.seconds += ended - began
        seen = losses | {
            "tokens": sum(len(batch.packed.ids) for batch in made.batches) / self.team.size,
            "audio": sum(batch.seconds for batch in made.batches) / self.team.size,
            "flops": self._flops(made) / self.team.size,
            "answers": float(sum_of(b.weights for b in made.batches)) / self.team.size,
            "wait": waited / run.world.size,
            "too_long": made.too_long / self.team.size,
            "broken": len(made.broken),
            "stop": float(self.stop.is_set()),
        }
        seen = summed(run.world, seen | self.by_source.take() | self._messages())
        self.told = bool(seen.pop("stop"))
        self.too_long += round(seen.pop("too_long"))
        self.used += seen["answers"] + seen["audio"]
        if seen.pop("broken"):  # of any process: all note the same, and end together
            run.note_broken(chain.from_iterable(run.world.gathered(made.broken)))
        self._check_empty(seen["answers"] + seen["audio"], made)
        losses = {name: seen.pop(name) for name in losses}
        loss = sum(losses.values())
        self.meters.add(losses | {"gradient_norm": norm}, seen | {"seconds": ended - began}, usable)
        run.journal.show(f"{stage.name} loss {loss:.2f}", progress.step, stage.steps)
        return ended

    def _gradients(self, made: Step) -> dict[str, float]:
        """Add up the gradients of a step's batches; gives their losses by name."""
        run, stage = self.run, self.stage
        names = objectives(stage)
        losses = torch.zeros(len(names), dtype=torch.float64, device=run.device)
        for batch in share(made.batches, stage, self.team, run.world):
            with autocast(run.device.type, run.config.bf16, stage.activations):
                parts: dict[str, Tensor] = run.trained(run.losses, batch.to(run.device), stage)
            if not parts:
                continue
            together = torch.stack(list(parts.values()))
            if together.requires_grad:
                together.sum().backward()
            else:  # of a batch without audio an encoder learns nothing
                settle(run.trained)
            for name, part in zip(parts, together.detach(), strict=True):
                if name != IDLE:
                    losses[names.index(name)] += part
        # Here alone the device is waited for.
        return {f"{name}_loss": loss for name, loss in zip(names, losses.tolist(), strict=True)}

    def _flops(self, made: Step) -> float:
        config, answers = self.run.net.config, bool(self.stage.losses.answer)
        forward = [forward_flops(config, batch.packed, answers) for batch in made.batches]
        return sum(flops.step(self.names) for flops in forward)

    def _messages(self) -> dict[str, float]:
        """Seconds that this process waited for those who share its sequences, where it can know: on GPUs the
        host does not wait, and what FSDP awaits is hidden within torch.
        """
        link = self.team.link
        if not isinstance(link, GroupLink) or self.run.device.type == "cuda":
            return {}
        return {"messages": link.take_waited() / self.run.world.size}

    def _update(self) -> tuple[float, bool]:
        """Move the parameters along their gradients, unless those cannot be used; gives their norm and
        whether they were.
        """
        progress, parameters = self.progress, self.run.parameters
        norm = clip([parameters[n] for n in sorted(self.names)], self.stage.clip)
        finite = bool(torch.isfinite(norm))
        progress.step += 1
        usable = progress.usable(float(norm), finite, self.stage.spike, self.stage.name)
        for optimizer in self.optimizers:
            if usable:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm), usable

    def _stopped(self) -> NoReturn:
        """Keep what is done, and end."""
        self.run.checkpoints.save(self.run.trained, self.optimizers, self.progress)
        self.run.checkpoints.finish()
        raise AfnextError(
            f"stopped by a signal after step {self.progress.step} of {self.stage.name}, which is kept: "
            "--resume goes on"
        )

    def _report(self) -> None:
        rate = rate_at(self.stage, self.progress.step - 1) * max(self.stage.train.values())
        minutes = self.progress.seconds / 60
        self.run.journal.write(
            "train", self._place(), stage=self.stage.name, step=self.progress.step, minutes=minutes,
            **self.meters.report(rate),
        )  # fmt: skip

    def _place(self) -> str:
        """The stage and the step of how many; how long the stage still takes, if its steps take as long as
        those of this process did, with all that came between them.
        """
        step, steps = self.progress.step, self.stage.steps
        place = f"{self.stage.name} {self.index + 1}/{len(self.run.config.stages)}, step {step} of {steps}"
        if step in (self.first, steps):
            return place
        taken = (time.perf_counter() - self.began) / (step - self.first)
        return f"{place}, about {said((steps - step) * taken)} left of the stage"

    def _report_left_out(self) -> None:
        left_out = {f"{name}: broken": count for name, count in self.run.broken.counts.items()}
        if self.too_long:
            left_out["longer than context_tokens (times drawn)"] = self.too_long
        if left_out:
            self.run.journal.write("left out", stage=self.stage.name, **left_out)

    def _check_used(self) -> None:
        """Raises where nothing that was drawn could be used: the weights are as the stage found them."""
        if self.used or self.progress.norm:  # which has the steps before those of this process too
            return
        why = "can be read"
        if self.too_long:
            why = f"fits context_tokens: {self.stage.context_tokens}"
        raise AfnextError(f"{self.stage.name}: no step has learnt anything: nothing drawn {why}")

    def _check_empty(self, used: float, made: Step) -> None:
        """Raises, on all processes alike, where too many batches in a row had nothing that could be used."""
        self.empty = 0 if used else self.empty + self.stage.accumulate
        if self.empty < EMPTY:
            return
        why = f"longer than context_tokens: {self.stage.context_tokens}"
        if made.broken:
            why = made.broken[-1].why
        raise AfnextError(f"{self.stage.name}: nothing that is drawn can be used; the last: {why}")

    def _held_out(self) -> list[Batch]:
        run = self.run
        if (batches := run.watched(self.stage)) is None:
            return []
        return [batch.to(run.device) for batch in batches.first(HELD_OUT_BATCHES)]

    def _evaluate(self, batches: Sequence[Batch]) -> None:
        run = self.run
        if batches:
            with torch.autocast(run.device.type, torch.bfloat16, enabled=run.config.bf16):
                scores = run.trained(task_accuracy, run.net, batches, run.words)
            settle(run.trained)
            run.journal.write(
                "held-out", self._place(), stage=self.stage.name, step=self.progress.step, **scores
            )

    def _show(self) -> None:
        """What the stage came to, for somebody to look at."""
        run, stage = self.run, self.stage
        if run.world.rank == 0:
            draw_losses(run.journal.path, run.out / "losses.svg")
        if not (run.show and stage.losses.answer and stage.hearing == "audio"):
            return
        sources, longest = run.held_out_sources, stage.audio_seconds
        if (
            not sources
        ):  # answers are made on the CPU: about short ones, and nobody else waits for them
            if run.world.size > 1:
                return
            names = mixture_of(stage, run.config.stages)
            sources = {name: source for name, source in run.sources.items() if names.get(name)}
            longest = min(longest, SHOWN_SECONDS)
        path, folder = run.out / f"samples-{stage.name}.md", run.export()
        if run.world.rank == 0:
            try:
                with torch.random.fork_rng(
                    devices=()
                ):  # what is drawn here must not change dropout
                    run.show(folder, sources, path, longest, bool(run.held_out_sources))
            except AfnextError as error:  # what is trained is worth more than what is shown of it
                run.journal.say(f"{path.name} is not written: {error}")
        run.world.wait()


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
