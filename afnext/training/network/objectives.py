"""What a batch adds to a step's loss: shares of the whole step's, whichever process has which part of it, so
that gradients only have to be summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from afnext.model import AudioLanguageModel
from afnext.training.config import LossWeights, StageConfig
from afnext.training.data.batches import Batch, Shared
from afnext.training.data.targets import Words
from afnext.training.distributed.spread import Spread, Whole, own_audio
from afnext.training.distributed.world import Team, World
from afnext.training.network.answers import chunked_answer_losses
from afnext.training.network.loss import (
    Heads,
    alignment_loss,
    clock_loss,
    counts,
    frame_loss,
    reading_loss,
    size_loss,
    spelling_loss,
)
from afnext.training.run.meters import SourceLosses

IDLE = "idle"
"""Zero, of everything that every process must have in its backward: see ``Objectives``."""
NOT_OBJECTIVES = ("length_power",)
OF_AUDIO = ("frames", "spelling", "reading", "alignment", "clock", "size", "captions")
"""Objectives that need every audio token of a batch in one place."""
NAMES = {"frames": "frame"}  # in the log, where it differs


def objectives(stage: StageConfig) -> list[str]:
    """Names in the log of what a stage trains towards."""
    names = [f.name for f in fields(LossWeights) if f.name not in NOT_OBJECTIVES]
    return [NAMES.get(name, name) for name in names if getattr(stage.losses, name)]


def share(batches: Sequence[Batch], stage: StageConfig, team: Team, world: World) -> list[Batch]:
    """A step's batches of this process with weights that are shares of the whole step's: every learnt token
    of the step, on any process, counts by its own weight, and every audio token of an objective about audio
    as every other, into however many batches they are cut. And, in a run of several, what each must know of
    the others' to keep in step.
    """
    own = [own_audio(batch.packed.audio, team) for batch in batches]
    counted = [counts(batch.targets) for batch in batches]
    sums = [sum_of(batch.weights for batch in batches)]
    sums += [torch.tensor([sum(c[name] for c in counted)]).double() for name in counted[0]]
    together = world.combined(torch.cat(sums) / team.size)
    total, of_audio = together[:1], together[1:].numpy().tolist()
    whole = dict(zip(counted[0], of_audio, strict=True))
    found = [
        replace(
            batch,
            weights=(batch.weights / total.clamp_min(1e-30)).float(),
            portions={name: count / whole[name] for name, count in c.items() if count},
        )
        for batch, c in zip(batches, counted, strict=True)
    ]
    if world.size == 1:
        return found
    told = [
        (len(audio.plans), len(batch.targets.labelled) > 0, len(batch.targets.spoken) > 0)
        for batch, audio in zip(batches, own, strict=True)
    ]
    most = world.combined(torch.tensor(told, dtype=torch.int64), largest=True).tolist()
    return [
        replace(batch, shared=Shared(team, audio, calls, bool(labelled), bool(spoken)))
        for batch, audio, (calls, labelled, spoken) in zip(found, own, most, strict=True)
    ]


def sum_of(weights: object) -> Tensor:
    """float64 ``[1]``."""
    parts = [w.double().sum() for w in weights]  # type: ignore[attr-defined]
    return torch.stack(parts).sum()[None].cpu() if parts else torch.zeros(1, dtype=torch.float64)


class Objectives:
    """The objectives of a stage.

    In a run of several processes there is one more, ``IDLE``, of value 0: it makes what a process has no use
    for in its batch (the encoder where nobody speaks, a head without labels) a part of its backward whenever
    another process uses it, or their sums of gradients would wait for it for ever.
    """

    def __init__(
        self,
        net: AudioLanguageModel,
        heads: Heads | None,
        words: Words,
        times: Sequence[int],
        stage: StageConfig,
        by_source: SourceLosses | None = None,
    ) -> None:
        self.net, self.heads, self.words, self.times, self.stage = net, heads, words, times, stage
        self.by_source = by_source

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        stage, shared, lm = self.stage, batch.shared, self.net.language_model
        everything = any(getattr(stage.losses, name) for name in OF_AUDIO)
        seen = (
            Spread(self.net, batch, stage.parallel, everything)
            if shared and shared.team.size > 1
            else Whole(self.net, batch)
        )
        # Each process of a team finds the same; of their sum each gives its part.
        team = shared.team.size if shared else 1
        of_audio = self._of_audio(batch, seen.encoded, seen.audio) if everything else {}
        parts = {name: part * (batch.portions[name] / team) for name, part in of_audio.items()}
        captions, audio_id = self.heads and self.heads.captions, self.net.config.audio_token_id
        if stage.losses.captions and captions:
            told = captions.loss(batch.packed, batch.weights, seen.encoded, audio_id)
            if told is not None:
                parts["captions"] = stage.losses.captions * told / team
        if stage.losses.answer:
            hidden, targets, weights, owners = seen.answers()
            losses = chunked_answer_losses(lm.lm_head, hidden, targets, self.times)
            parts["answer"] = stage.losses.answer * (losses * weights).sum()
            if self.by_source:
                self.by_source.add(losses, owners)
        if shared:
            parts[IDLE] = self._idle(shared, seen.encoded, seen.audio)
        return parts

    def _of_audio(self, batch: Batch, encoded: Tensor, audio: Tensor) -> dict[str, Tensor]:
        wanted, targets = self.stage.losses, batch.targets
        embedding = self.net.language_model.model.embed_tokens.weight
        parts: dict[str, Tensor] = {}
        if len(targets.labelled):
            if wanted.frames and self.heads:
                parts["frame"] = wanted.frames * frame_loss(self.heads, encoded, targets)
            if wanted.alignment:
                near = alignment_loss(audio, embedding, self.words, targets)
                parts["alignment"] = wanted.alignment * near
            if wanted.clock:
                read = clock_loss(audio, embedding, self.words, targets)
                parts["clock"] = wanted.clock * read
        if targets.spoken and self.heads and (wanted.spelling or wanted.reading):
            spelled = self.heads.spelling(encoded)
            if wanted.spelling:
                parts["spelling"] = wanted.spelling * spelling_loss(spelled, targets)
            if wanted.reading:
                read = reading_loss(audio, embedding, spelled, self.words, targets)
                parts["reading"] = wanted.reading * read
        if wanted.size and len(audio):
            parts["size"] = wanted.size * size_loss(audio, embedding)
        return parts

    def _idle(self, shared: Shared, encoded: Tensor, audio: Tensor) -> Tensor:
        wanted, heads = self.stage.losses, self.heads
        nothing = encoded.new_zeros(())
        if shared.calls:
            nothing = nothing + 0.0 * encoded.sum() + 0.0 * audio.sum()
        used: list[Tensor] = []
        if heads and shared.labelled and wanted.frames:
            used += [*heads.active.parameters(), *heads.onsets.parameters()]
        if heads and shared.spoken and wanted.spelling:
            used += heads.spelling.parameters()
        if heads and heads.captions and wanted.captions:
            used += heads.captions.parameters()
        for parameter in used:
            nothing = nothing + 0.0 * parameter.sum()
        return nothing
