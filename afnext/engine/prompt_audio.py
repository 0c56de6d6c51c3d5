"""Where a prompt's audio lies: which tokens stand for which window."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
        self._placeholder = placeholder
        self.windows: list[AudioWindow] = []
        self.keys: list[bytes] = []
        self._positions = np.zeros(0, np.int64)
        self._ends: list[int] = []
        self._length = 0
        self.extend(ids, windows, [window_key(w) for w in windows])

    @property
    def num_tokens(self) -> int:
        """Of all windows."""
        return self._ends[-1] if self._ends else 0

    def extend(
        self, ids: Sequence[int], windows: Sequence[AudioWindow], keys: Sequence[bytes]
    ) -> None:
        """The prompt goes on with ``ids`` and their ``windows``, whose ``window_key`` is in ``keys``.

        Raises:
            ValueError: more or fewer placeholders than tokens.
        """
        found = np.flatnonzero(np.asarray(ids) == self._placeholder)
        expected = sum(w.num_tokens for w in windows)
        if len(found) != expected:
            raise ValueError(
                f"ids: the prompt has {len(found)} <sound> placeholders (token "
                f"{self._placeholder}) but its audio makes {expected} tokens"
            )
        self._positions = np.concatenate((self._positions, found + self._length))
        self._length += len(ids)
        for window, key in zip(windows, keys, strict=True):
            if window.num_tokens:
                self.windows.append(window)
                self.keys.append(key)
                self._ends.append(self.num_tokens + window.num_tokens)

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
