"""Windows of a whole batch, packed: features one after another, and where each one belongs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from afnext import ops
from afnext.audio.windows import WINDOW_FRAMES, AudioWindow, tokens_in


def frames_needed(frames: int) -> int:
    """Log-mel frames the encoder reads for ``frames`` valid ones: its kernels look two further."""
    return min(WINDOW_FRAMES, frames + 2)


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """Index tensors of some packed windows, built on the host before any compiled region.

    An index equal to the number of rows it points into means a row of zeros: the padding at a
    window's edges.

    Attributes:
        frames: the rows of ``AudioBatch.features`` that these windows take.
        conv1, conv2: int64 ``[C, 3]`` and ``[P, 3]``, what each output of a convolution reads.
        positions: int64 ``[P]``, place within the window.
        lengths: positions per window.
        cu_seqlens: int32 ``[N + 1]`` on the host, where attention reads it: their running sum.
        pooled: int64 ``[n, 2]``, the positions behind each audio token.
        window_start: float32 ``[n]``, start of each token's window in its recording, in seconds.
        token_index: int64 ``[n]``, place of each token within its window.
    """

    frames: slice
    conv1: Tensor
    conv2: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    pooled: Tensor
    window_start: Tensor
    token_index: Tensor

    @classmethod
    def build(
        cls, first_frame: int, frames: Sequence[int], tokens: Sequence[int], starts: Sequence[float]
    ) -> WindowPlan:
        """Plan windows of ``frames`` valid log-mel frames that begin at row ``first_frame``."""
        written = [frames_needed(n) for n in frames]
        lengths = [(n - 1) // 2 + 1 for n in frames]
        # The second convolution has stride 2: position p reads outputs 2p - 1 to 2p + 1 of the first.
        conv1 = _reads(written, [2 * n for n in lengths], 1)
        conv2 = _reads([2 * n for n in lengths], lengths, 2)
        index = _ranges(tokens)
        begin = np.repeat([0, *accumulate(lengths)][:-1], tokens)
        pooled = (begin + 2 * index)[:, None] + np.arange(2)
        return cls(
            frames=slice(first_frame, first_frame + sum(written)),
            conv1=torch.from_numpy(conv1),
            conv2=torch.from_numpy(conv2),
            positions=torch.from_numpy(_ranges(lengths)),
            lengths=tuple(lengths),
            cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
            pooled=torch.from_numpy(pooled),
            window_start=torch.from_numpy(np.repeat(np.asarray(starts, np.float32), tokens)),
            token_index=torch.from_numpy(index),
        )

    def to(self, device: torch.device | str) -> WindowPlan:
        """The same plan on ``device``."""
        names = (n for n, v in vars(self).items() if isinstance(v, Tensor) and n != "cu_seqlens")
        return replace(self, **{n: getattr(self, n).to(device) for n in names})


def _ranges(lengths: Sequence[int]) -> np.ndarray:
    """0..n-1 for each n of ``lengths``, one after another."""
    return np.concatenate([np.arange(n) for n in (0, *lengths)])


def _reads(inputs: Sequence[int], outputs: Sequence[int], stride: int) -> np.ndarray:
    """int64 ``[sum(outputs), 3]``: rows read by a width-3 convolution with one zero at each edge."""
    place = (stride * _ranges(outputs))[:, None] + np.arange(-1, 2)
    size = np.repeat(np.asarray(inputs, np.int64), outputs)[:, None]
    begin = np.repeat(np.asarray([0, *accumulate(inputs)][:-1], np.int64), outputs)[:, None]
    return np.where((place >= 0) & (place < size), begin + place, sum(inputs))


@dataclass(frozen=True, eq=False)
class AudioBatch:
    """The audio of a batch, packed row after row, recording after recording, window after window.

    Windows of at most 20 ms hold no token and are left out.

    Attributes:
        features: float32 ``[T, 128]`` log-mel frames; two frames of silence follow a short window.
        cu_frames: int64 ``[N + 1]`` on the host, where windows begin and end in ``features``.
        frames: valid 10 ms frames of each window.
        tokens: audio tokens of each window.
        starts: start of each window in its recording, in seconds.
        rows: row of the batch that each window belongs to.
        row_tokens: audio tokens of each row, rows without audio included.
        plans: index tensors, a few windows each, so that a long recording is encoded in pieces.
    """

    features: Tensor
    cu_frames: Tensor
    frames: tuple[int, ...]
    tokens: tuple[int, ...]
    starts: tuple[float, ...]
    rows: tuple[int, ...]
    row_tokens: tuple[int, ...]
    plans: tuple[WindowPlan, ...]

    @classmethod
    def collate(cls, rows: Sequence[Sequence[AudioWindow]], *, max_windows: int = 8) -> AudioBatch:
        """Pack the windows of a batch: for each row, its windows in the order of its placeholders.

        Args:
            rows: for each row of the batch the windows of all its recordings, in order.
            max_windows: full windows that are encoded at once; bounds the encoder's memory.
        """
        kept = [(row, w) for row, windows in enumerate(rows) for w in windows if w.num_tokens]
        audio = [np.ascontiguousarray(w.samples[: w.valid_samples]) for _, w in kept]
        ends = torch.tensor([0, *accumulate(len(a) for a in audio)], dtype=torch.int64)
        frames = [w.num_frames for _, w in kept]
        written = [frames_needed(n) for n in frames]
        samples = torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *audio]))
        row_tokens = [sum(w.num_tokens for w in windows) for windows in rows]
        return cls.pack(
            ops.log_mel(samples, ends, written),
            frames,
            [w.start_seconds for _, w in kept],
            [row for row, _ in kept],
            len(row_tokens),
            max_windows=max_windows,
        )

    @classmethod
    def pack(
        cls,
        features: Tensor,
        frames: Sequence[int],
        starts: Sequence[float],
        rows: Sequence[int],
        batch: int,
        *,
        max_windows: int = 8,
    ) -> AudioBatch:
        """Build from ready log-mel features.

        Args:
            features: float32 ``[sum(frames_needed(n)), 128]``.
            frames: valid frames of each window, at least 3 (one token).
            starts: start of each window in its recording, in seconds.
            rows: the row of each window, ascending.
            batch: number of rows.
            max_windows: full windows that are encoded at once.

        Raises:
            ValueError: when these do not fit together.
        """
        count = len(frames)
        if not len(starts) == len(rows) == count:
            raise ValueError(
                f"AudioBatch: frames, starts and rows must be equally long, got {count}, "
                f"{len(starts)} and {len(rows)}"
            )
        if any(not 3 <= n <= WINDOW_FRAMES for n in frames):
            raise ValueError(f"AudioBatch: frames must be 3 to {WINDOW_FRAMES}, got {list(frames)}")
        if list(rows) != sorted(rows) or any(not 0 <= r < batch for r in rows):
            raise ValueError(
                f"AudioBatch: rows must ascend from 0 to {batch - 1}, got {list(rows)}"
            )
        written = [frames_needed(n) for n in frames]
        if features.dim() != 2 or features.shape[0] != sum(written):
            raise ValueError(
                f"AudioBatch: features must be [{sum(written)}, 128], got {list(features.shape)}"
            )
        tokens = [tokens_in(n) for n in frames]
        row_tokens = [0] * batch
        for row, n in zip(rows, tokens, strict=True):
            row_tokens[row] += n
        ends = [0, *accumulate(written)]
        plans = tuple(
            WindowPlan.build(ends[part.start], frames[part], tokens[part], starts[part])
            for part in _pieces(written, max_windows * WINDOW_FRAMES)
        )
        return cls(
            features, torch.tensor(ends), tuple(frames), tuple(tokens), tuple(starts), tuple(rows),
            tuple(row_tokens), plans,
        )  # fmt: skip

    @property
    def num_tokens(self) -> int:
        """Audio tokens of the whole batch."""
        return sum(self.tokens)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AudioBatch:
        """The same batch on ``device``, features in ``dtype``; times stay float32."""
        device = self.features.device if device is None else torch.device(device)
        return replace(
            self,
            features=self.features.to(device, dtype),
            plans=tuple(plan.to(device) for plan in self.plans),
        )


def _pieces(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Cut into runs whose sum stays within ``limit``, each of at least one."""
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))
