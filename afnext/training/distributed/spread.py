"""A batch over the processes that share its sequences: windows, tokens and answers, each on one of them.

Targets are what follows within a conversation, found before anything is cut: what a token at a border has to
say is known there, whoever has the token behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from afnext.model import AudioBatch, AudioLanguageModel
from afnext.model.audio_batch import frames_needed
from afnext.parallel import Layout, RowExchange, SequencePlan, SharedAttention
from afnext.training.config import ParallelConfig
from afnext.training.data.batches import Batch
from afnext.training.data.packing import NOT_LEARNT, hear, hidden_states
from afnext.training.distributed.world import Team

SHORTEST = 3
"""Frames of the least that the encoder can hear: one token."""


@dataclass(frozen=True)
class Part:
    """A process's part of a packed batch.

    Attributes:
        plan: of the whole row.
        ids, positions, targets: int64 ``[T]``, of its tokens.
        weights, owners: float32 and int64 ``[learnt]``, of those of its targets that are learnt.
        heard: int64 ``[placeholders]``, which audio token of the batch stands at each of its placeholders.
    """

    plan: SequencePlan
    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    owners: Tensor
    heard: Tensor


def cut(batch: Batch, audio_id: int, layout: Layout, ulysses: int, ring: int) -> list[Part]:
    """The parts of all processes. Conversations lie one behind the other, none shares its beginning."""
    packed = batch.packed
    if any(packed.trunks):
        raise ValueError("cut: the batch must be packed without shared beginnings")
    ends = accumulate((n for group in packed.branches for n in group), initial=0)
    plan = SequencePlan(ulysses, ring, layout, tuple(ends))
    learnt, placeholders = packed.targets != NOT_LEARNT, packed.ids == audio_id
    weights = torch.zeros(plan.total, device=batch.weights.device)
    weights[learnt] = batch.weights
    owners = torch.zeros_like(packed.ids)
    owners[learnt] = batch.owners
    heard = torch.zeros_like(packed.ids)
    heard[placeholders] = packed.heard

    def part(rank: int) -> Part:
        ids, targets = plan.shard(packed.ids, rank), plan.shard(packed.targets, rank)
        return Part(
            plan, ids, plan.shard(packed.positions, rank), targets,
            plan.shard(weights, rank)[targets != NOT_LEARNT],
            plan.shard(owners, rank)[targets != NOT_LEARNT],
            plan.shard(heard, rank)[ids == audio_id],
        )  # fmt: skip

    return [part(rank) for rank in range(plan.size)]


def windows_of(audio: AudioBatch, size: int) -> list[slice]:
    """Consecutive windows for each of ``size`` processes, about as many frames for each."""
    ends = audio.cu_frames.tolist()
    middles = [(a + b) / 2 for a, b in pairwise(ends)]
    owner = [min(size - 1, int(m * size / max(1, ends[-1]))) for m in middles]
    firsts = [sum(o < rank for o in owner) for rank in range(size + 1)]
    return [slice(firsts[rank], firsts[rank + 1]) for rank in range(size)]


def some(audio: AudioBatch, windows: slice) -> AudioBatch:
    """A batch of some consecutive windows of another."""
    first, last = audio.cu_frames[windows.start], audio.cu_frames[windows.stop]
    frames, starts = audio.frames[windows], audio.starts[windows]
    features = audio.features[int(first) : int(last)]
    return AudioBatch.pack(features, frames, starts, [0] * len(frames), 1).to(features.device)


def own_audio(audio: AudioBatch, team: Team) -> AudioBatch:
    """The windows that this process encodes."""
    if team.size == 1:
        return audio
    return some(audio, windows_of(audio, team.size)[team.link.rank])


def encode(net: AudioLanguageModel, audio: AudioBatch, calls: int) -> Tensor:
    """Encoder features ``[A, audio hidden]``, in ``calls`` calls of the encoder at least: those beyond this
    process's windows hear a moment of silence and count for nothing. Where layers are sharded every process
    must call each as often as the others, or all wait for one another for ever.
    """
    features = [net.audio_tower(audio.features[plan.frames], plan) for plan in audio.plans]
    frames = audio.features.new_zeros(frames_needed(SHORTEST), audio.features.shape[1])
    silence = AudioBatch.pack(frames, [SHORTEST], [0.0], [0], 1).to(frames.device)
    for _ in range(calls - len(features)):
        features.append(net.audio_tower(silence.features, silence.plans[0])[:0])
    if not features:
        return audio.features.new_zeros(0, net.config.audio.hidden_size)
    return torch.cat(features)


def adapt(
    net: AudioLanguageModel, encoded: Tensor, audio: AudioBatch, rows: Tensor | None
) -> Tensor:
    """Audio tokens of a batch's encoder features: of all, or of some rows of them."""
    none = encoded.new_zeros(0)
    starts = torch.cat([none.float(), *(plan.window_start for plan in audio.plans)])
    places = torch.cat([none.long(), *(plan.token_index for plan in audio.plans)])
    if rows is not None:
        starts, places = starts[rows], places[rows]
    return net.multi_modal_projector(net.rote(encoded, starts, places))


class Whole:
    """A batch that one process has to itself.

    Attributes:
        encoded: encoder features ``[A, audio hidden]``.
        audio: audio tokens ``[A, hidden]`` made of them.
    """

    def __init__(self, net: AudioLanguageModel, batch: Batch) -> None:
        self.net, self.batch = net, batch
        audio, shared = batch.packed.audio, batch.shared
        if shared is None:
            self.encoded, self.audio = hear(net, audio)
        else:
            self.encoded = encode(net, audio, shared.calls)
            self.audio = adapt(net, self.encoded, audio, None) if shared.calls else _none(net)

    def answers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Last hidden states, targets, weights and owners of the learnt tokens."""
        packed = self.batch.packed
        learnt = packed.targets != NOT_LEARNT
        hidden = hidden_states(self.net, packed, self.audio)[learnt]
        return hidden, packed.targets[learnt], self.batch.weights, self.batch.owners


class Spread:
    """A batch of a team, seen by one of its processes.

    Args:
        net: the network.
        batch: the whole of it, the same on all; packed without shared beginnings.
        parallel: how tokens lie, and in what gradients go round.
        everything: whether losses need all audio tokens on each process, or each its own placeholders'.
    """

    def __init__(
        self,
        net: AudioLanguageModel,
        batch: Batch,
        parallel: ParallelConfig,
        everything: bool,
    ) -> None:
        shared, audio_id = batch.shared, net.config.audio_token_id
        assert shared is not None
        assert audio_id is not None
        self.net, self.team, self.everything = net, shared.team, everything
        self.grad_dtype = getattr(torch, parallel.grad_dtype)
        team, link = shared.team, shared.team.link
        parts = cut(batch, audio_id, parallel.layout, link.ulysses, link.ring)
        self.part = parts[link.rank]
        audio = batch.packed.audio
        every = torch.arange(audio.num_tokens)
        wanted = [every if everything else part.heard.cpu() for part in parts]
        tokens, owners = audio.tokens, windows_of(audio, team.size)
        mine = encode(net, shared.own, shared.calls)
        exchange = RowExchange([sum(tokens[windows]) for windows in owners], wanted)
        assert team.group is not None
        self.encoded = exchange(mine, team.group) if shared.calls else mine
        rows = None if everything else self.part.heard
        self.audio = adapt(net, self.encoded, audio, rows) if shared.calls else _none(net)

    def answers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Last hidden states, targets, weights and owners of this process's learnt tokens."""
        part, decoder = self.part, self.net.language_model.model
        embeds = decoder.embed_tokens(part.ids)
        places = (part.ids == self.net.config.audio_token_id).nonzero()[:, 0]
        audio = self.audio[part.heard] if self.everything else self.audio
        embeds = embeds.index_copy(0, places, audio.to(embeds.dtype))
        attend = SharedAttention(
            part.plan, part.positions, decoder.inv_freq.values, self.team.link, self.grad_dtype
        )
        learnt = part.targets != NOT_LEARNT
        hidden = decoder(embeds, attend)[-1][learnt]
        return hidden, part.targets[learnt], part.weights, part.owners


def _none(net: AudioLanguageModel) -> Tensor:
    weight = net.multi_modal_projector.linear_2.weight
    return weight.new_zeros(0, weight.shape[0])
