"""Batches: clips of one length with several exchanges packed behind one copy of their audio."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from afnext import ops
from afnext.audio.windows import WINDOW_FRAMES, WINDOW_SAMPLES, frames_in, tokens_in
from afnext.training.config import MixPhase, StageConfig
from afnext.training.synthesis import CLASSES, ClipSet, Event
from afnext.training.tasks import Exchange, exchanges

TOKENS_PER_SECOND = 25
EDGE_FRAMES = 4
"""Frames of silence kept after a clip: the convolutions at its end see them, as in a padded window."""


@dataclass(frozen=True)
class Features:
    """Log-mel ``[B, frames + edge, 128]`` of one window of every clip; ``frames`` hold audio."""

    mel: Tensor
    frames: int


@dataclass(frozen=True)
class Packed:
    """Text behind the audio, one row a clip.

    Attributes:
        ids: int64 [B, L], exchanges one after another, padded with 0.
        segments: int64 [B, L], from 1 within a row; -1 is padding. Segments do not see each other.
        positions: int64 [B, L], counted on from the audio for every segment.
        targets: int64 [B, L], the next token where the answer is to be learnt, else -1.
        weights: float32 [B, L] of those targets.
        tasks: for each row the tasks of its exchanges; the segment number minus one is the index.
    """

    ids: Tensor
    segments: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    tasks: list[list[str]]


@dataclass(frozen=True)
class Batch:
    seconds: float
    windows: list[Features]
    events: list[tuple[Event, ...]]
    text: Packed
    prefix: Tensor
    audio_tokens: int


@dataclass
class Vocabulary:
    """The ids that training needs by name, and a cache of encoded texts."""

    tokenizer: Tokenizer
    times: Tensor = field(init=False)
    labels: Tensor = field(init=False)
    prefix: list[int] = field(init=False)
    close: list[int] = field(init=False)

    def __post_init__(self) -> None:
        vocab = self.tokenizer.get_vocab()
        self.times = torch.tensor([vocab[f"{k / 10:.1f}"] for k in range(601)])
        words = [self.tokenizer.encode(text).ids for c in CLASSES for text in (f" {c}", c)]
        if any(len(ids) != 1 for ids in words):
            raise ValueError("Vocabulary: every class name must be one token; use more pieces")
        self.labels = torch.tensor(words).view(len(CLASSES), 2)
        self.prefix = self.tokenizer.encode("<|im_start|>user\n<|sound_bos|>").ids
        self.close = self.tokenizer.encode("<|sound_eos|>").ids
        self.encode = lru_cache(maxsize=100_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text).ids)

    def question(self, text: str) -> tuple[int, ...]:
        return self.encode(f"{text}<|im_end|>\n<|im_start|>assistant\n")

    def answer(self, text: str) -> tuple[int, ...]:
        return self.encode(f"{text}<|im_end|>")


def features(samples: NDArray[np.int16]) -> list[Features]:
    """Log-mel of ``samples`` int16 [B, S], one entry for each 30 s window."""
    windows = []
    for start in range(0, samples.shape[1], WINDOW_SAMPLES):
        part = torch.from_numpy(
            samples[:, start : start + WINDOW_SAMPLES].astype(np.float32) / 32768
        )
        clips, length = part.shape
        frames = frames_in(length)
        kept = min(WINDOW_FRAMES, frames + EDGE_FRAMES)
        mel = ops.log_mel(part.reshape(-1), torch.arange(clips + 1) * length, [kept] * clips)
        windows.append(Features(mel.view(clips, kept, -1), frames))
    return windows


def count_tokens(samples: int) -> int:
    """Audio tokens of a clip of that many samples, over all its windows."""
    full, rest = divmod(samples, WINDOW_SAMPLES)
    return full * tokens_in(WINDOW_FRAMES) + tokens_in(frames_in(rest))


def pack(
    rows: Sequence[Sequence[Exchange]],
    first: int,
    vocab: Vocabulary,
    rng: random.Random,
    power: float = 0.0,
    follow: float = 0.0,
) -> Packed:
    """Lay out exchanges after the audio, whose next position is ``first``.

    A share ``follow`` of them go on from the exchange before, as a further turn of its conversation. A
    target of an answer of n tokens weighs ``n ** -power``.
    """
    columns: list[tuple[list[Any], ...]] = []
    tasks = []
    turn = vocab.encode("\n<|im_start|>user\n")
    for row in rows:
        ids: list[int] = []
        segments: list[int] = []
        positions: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        names: list[str] = []
        at = first
        for exchange in row:
            question, answer = vocab.question(exchange.question), vocab.answer(exchange.answer)
            if names and rng.random() < follow:
                lead = (*turn, *question)
            else:
                at, lead = first, (*vocab.close, *question)
                names.append(exchange.task)
            n = len(lead) + len(answer)
            ids += [*lead, *answer]
            segments += [len(names)] * n
            positions += range(at, at + n)
            targets += [*[-1] * (len(lead) - 1), *answer, -1]
            weights += [len(answer) ** -power] * n
            at += n
        tasks.append(names)
        columns.append((ids, segments, positions, targets, weights))
    width = max(len(c[0]) for c in columns)
    fill = (0, -1, 0, -1, 0.0)

    def stack(k: int) -> Tensor:
        return torch.tensor([[*c[k], *[fill[k]] * (width - len(c[k]))] for c in columns])

    return Packed(stack(0), stack(1), stack(2), stack(3), stack(4), tasks)


def assemble(
    clips: ClipSet,
    indices: Sequence[int],
    questions: int,
    vocab: Vocabulary,
    rng: random.Random,
    power: float = 0.0,
    follow: float = 0.0,
    tasks: Mapping[str, float] | None = None,
) -> Batch:
    """A batch of the given clips with ``questions`` exchanges each."""
    samples = np.stack([clips.samples[i] for i in indices])
    events = [clips.events[i] for i in indices]
    tokens = count_tokens(samples.shape[1])
    rows = [exchanges(e, questions, rng, tasks) for e in events]
    text = pack(rows, len(vocab.prefix) + tokens, vocab, rng, power, follow)
    return Batch(clips.seconds, features(samples), events, text, torch.tensor(vocab.prefix), tokens)


def _shares(phases: Sequence[MixPhase], progress: float) -> dict[str, float]:
    return next((p.shares for p in phases if progress < p.until), phases[-1].shares)


def draw(
    sets: Sequence[ClipSet], stage: StageConfig, step: int, seed: str, vocab: Vocabulary
) -> Batch:
    """The batch of a step: a function of the seed and the step alone, so a resumed run repeats it."""
    rng = random.Random(f"{seed}/{stage.name}/{step}")
    shares = _shares(stage.mix, stage.progress(step))
    low, high = map(float, rng.choices(list(shares), list(shares.values()))[0].split("-"))
    chosen = [s for s in sets if low <= s.seconds <= high]
    if not chosen:
        raise ValueError(f"stage {stage.name}: the data has no clips of {low:g} to {high:g} s")
    clips = rng.choices(chosen, [len(s) * s.seconds for s in chosen])[0]
    count = max(2, int(stage.audio_tokens / (clips.seconds * TOKENS_PER_SECOND)))
    indices = [rng.randrange(len(clips)) for _ in range(count)]
    questions = stage.questions + int(0.15 * clips.seconds)
    return assemble(clips, indices, questions, vocab, rng, stage.losses.length_power, stage.follow)


def frame_targets(events: Sequence[Sequence[Event]], tokens: int) -> Tensor:
    """float32 [B, tokens, 2 * classes]: activity of every class, then its onsets (0.3 on neighbours)."""
    classes = len(CLASSES)
    target = torch.zeros(len(events), tokens, 2 * classes)
    for row, clip in zip(target, events, strict=True):
        for event in clip:
            k = CLASSES.index(event.label)
            first = int(event.onset * TOKENS_PER_SECOND + 0.5)
            last = int(event.offset * TOKENS_PER_SECOND + 0.5)
            row[first:last, k] = 1
            for at, value in ((first - 1, 0.3), (first + 1, 0.3), (first, 1.0)):
                if 0 <= at < tokens:
                    row[at, classes + k] = max(value, float(row[at, classes + k]))
    return target
