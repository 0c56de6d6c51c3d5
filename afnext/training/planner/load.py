"""What a batch holds, as far as memory and time depend on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from afnext.audio.windows import WINDOW_FRAMES, tokens_in
from afnext.model import AudioBatch
from afnext.model.audio_batch import frames_needed
from afnext.training.config import StageConfig
from afnext.training.data.batches import SCRIPT_TOKENS, Batch
from afnext.training.data.entries import AUDIO_TOKENS
from afnext.training.data.packing import NOT_LEARNT

TEXT, LEARNT = 128, 64
"""Tokens of a conversation beside its recording, and of its answers: assumed."""
FRAMES = 100  # of log-mel, a second


@dataclass(frozen=True)
class Load:
    """A batch, or a process's part of one.

    Attributes:
        documents: tokens of each, of the whole batch.
        windows: valid log-mel frames of those that are encoded here.
        tokens: of the decoder here.
        learnt: targets here.
        ranks: processes that have the documents together.
    """

    documents: tuple[int, ...]
    windows: tuple[int, ...]
    tokens: int
    learnt: int
    ranks: int = 1

    @classmethod
    def of_stage(cls, stage: StageConfig) -> Load:
        """The largest that a stage draws, about: recordings as long as it takes, one question about each."""
        heard = stage.hearing == "audio"
        seconds = min(stage.audio_seconds, (stage.context_tokens - TEXT) / AUDIO_TOKENS)
        frames = int(seconds * FRAMES) if heard else 0
        full, rest = divmod(frames, WINDOW_FRAMES)
        windows = [WINDOW_FRAMES] * full + [rest] * (rest >= 3)
        script = 0 if heard else int(stage.audio_seconds * SCRIPT_TOKENS)
        length = sum(map(tokens_in, windows)) + script + TEXT
        count = max(1, stage.batch_tokens // length)
        return cls((length,) * count, tuple(windows * count), length * count, LEARNT * count)

    @classmethod
    def of_batch(cls, batch: Batch) -> Load:
        """Of a batch whose conversations share nothing."""
        packed = batch.packed
        documents = tuple(n for group in packed.branches for n in group)
        learnt = int((packed.targets != NOT_LEARNT).sum())
        return cls(documents, packed.audio.frames, len(packed.ids), learnt)

    def shared(self, ranks: int) -> Load:
        """A process's part, of those who share it the one that has most."""
        if ranks == 1:
            return self
        return replace(
            self, windows=self.windows[: math.ceil(len(self.windows) / ranks)],
            tokens=math.ceil(self.tokens / ranks), learnt=math.ceil(self.learnt / ranks), ranks=ranks,
        )  # fmt: skip

    @property
    def pairs(self) -> float:
        """(query, key) pairs of the decoder here, in each layer and head."""
        return sum(n * (n + 1) / 2 for n in self.documents) / self.ranks

    @property
    def window_pairs(self) -> float:
        """Of the encoder, to a row of it."""
        rows = [(n - 1) // 2 + 1 for n in self.windows]
        return sum(n * n for n in rows) / max(1, sum(rows))

    @property
    def data_bytes(self) -> int:
        """Of the whole batch, which every process that shares it has: ids, positions, targets, owners and
        what is heard in int64, log-mel features in float32.
        """
        frames = sum(map(frames_needed, self.windows))
        return (self.ranks * (frames * 128 * 4)) + 5 * 8 * sum(self.documents)

    def audio(self) -> AudioBatch:
        """Windows of this sort, of zeros."""
        written = sum(map(frames_needed, self.windows))
        count = len(self.windows)
        return AudioBatch.pack(
            torch.zeros(written, 128), self.windows, [0.0] * count, [0] * count, 1
        )


def audio_tokens(windows: Sequence[int]) -> int:
    """Of windows of so many frames."""
    return sum(map(tokens_in, windows))
