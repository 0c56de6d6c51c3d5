"""Rotary time embedding (RoTE) of encoder features, between encoder and adaptor.

``axial`` is what the released checkpoints compute: two axes, the window within its recording and the
token within its window, each modulated by the absolute time. Its float32 roundings (angles reach 44,000
rad) are part of the checkpoint, so the order of operations is transformers'
(``MusicFlamingoRotaryEmbedding``). ``time`` is the paper's formula (OMCAT, arXiv 2410.12109): one axis,
the angle is -2 pi tau f.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor, nn

from afnext import ops
from afnext.ops import reference

from .config import RoteConfig
from .layers import Frequencies, inverse_frequencies, under_autocast


class RotaryTimeEmbedding(nn.Module):
    """Turns channels of each audio token by when it sounds."""

    def __init__(self, config: RoteConfig, hidden_size: int, window_tokens: int) -> None:
        super().__init__()
        self.config, self.window_tokens = config, window_tokens
        dim = int(hidden_size * config.partial)
        self.inv_freq = Frequencies(inverse_frequencies(config.theta, dim))

    def forward(self, hidden: Tensor, window_start: Tensor, token_index: Tensor) -> Tensor:
        """Rotate ``hidden [n, hidden_size]``.

        Args:
            hidden: encoder features, one row per token.
            window_start: float32 ``[n]``, start of the token's window in its recording, in seconds.
            token_index: int64 ``[n]``, place of the token within its window.
        """
        if self.config.kind == "none" or self.inv_freq.values.numel() == 0:
            return hidden
        if self.config.kind == "axial":
            angles = self.axial_angles(window_start, token_index)
            return self._turn(hidden, angles)
        times, inv_freq = self.times(window_start, token_index), -2 * pi * self.inv_freq.values
        if under_autocast(hidden):
            return self._turn(hidden, reference.phases(times, inv_freq).float())
        return ops.rotate(hidden, times, inv_freq, interleaved=True)

    @staticmethod
    def _turn(hidden: Tensor, angles: Tensor) -> Tensor:
        if under_autocast(hidden):
            return reference.rotate_by(hidden[:, None], angles, True, torch.float32)[:, 0]
        return ops.rotate(hidden, angles=angles, interleaved=True)

    def times(self, window_start: Tensor, token_index: Tensor) -> Tensor:
        """Absolute time of each token: the 40 ms grid of its window, moved to where that starts."""
        return window_start + token_index.float() * self.config.token_seconds

    def axial_angles(self, window_start: Tensor, token_index: Tensor) -> Tensor:
        """float32 ``[n, R / 2]``, bit-equal to transformers' in eager mode."""
        c, inv_freq = self.config, self.inv_freq.values
        window_seconds = c.token_seconds * self.window_tokens
        window = torch.round(window_start / window_seconds) / c.max_position
        token = token_index.float() / c.max_position
        if c.window_factor != 1.0:
            window = window * c.window_factor
        token = token * c.time_factor
        both = torch.cat((window[:, None] * inv_freq, token[:, None] * inv_freq), dim=-1)
        return both * (-self.times(window_start, token_index) * 2 * pi)[:, None]
