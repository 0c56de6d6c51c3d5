"""Where a prompt's audio lies: which tokens stand for which window."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from afnext.audio.windows import AudioWindow


def window_key(window: AudioWindow) -> bytes:
    """Tells windows apart by what the model hears: samples, and when in the recording they begin."""
    samples = np.ascontiguousarray(window.samples[: window.valid_samples])
    digest = hashlib.blake2b(samples.data, digest_size=16)
    digest.update(window.start_sample.to_bytes(8, "little"))
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some tokens of one window.

    Attributes:
        window: index of the window in ``PromptAudio.windows``.
        rows: which of its tokens.
        positions: where each of them stands in the prompt, int64.
        ends: whether they reach the window's end.
    """

    window: int
    rows: slice
    positions: np.ndarray
    ends: bool


class PromptAudio:
    """The windows of a prompt, in the order of its placeholders.

    Args:
        ids: the prompt.
        windows: its audio; those without a token are left out.
        placeholder: the id that stands for audio.

    Raises:
        ValueError: the prompt has more or fewer placeholders than the windows have tokens.
    """

    def __init__(
        self, ids: Sequence[int], windows: Sequence[AudioWindow], placeholder: int
    ) -> None:
        self.windows = [w for w in windows if w.num_tokens]
        self._positions = np.flatnonzero(np.asarray(ids) == placeholder)
        self._ends = list(accumulate(w.num_tokens for w in self.windows))
        expected = self._ends[-1] if self._ends else 0
        if len(self._positions) != expected:
            raise ValueError(
                f"ids: the prompt has {len(self._positions)} <sound> placeholders (token "
                f"{placeholder}) but its audio makes {expected} tokens"
            )
        self.num_tokens = expected
        self.keys = [window_key(w) for w in self.windows]

    def stretches(self, first: int, end: int) -> Iterator[Stretch]:
        """What tokens ``[first, end)`` of the prompt hear, window by window."""
        low, high = np.searchsorted(self._positions, (first, end)).tolist()
        while low < high:
            window = bisect_right(self._ends, low)
            begin = self._ends[window - 1] if window else 0
            until = min(high, self._ends[window])
            rows = slice(low - begin, until - begin)
            yield Stretch(window, rows, self._positions[low:until], until == self._ends[window])
            low = until
