"""The adaptor: a two-layer perceptron from encoder features to decoder embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .layers import Linear


class Adaptor(nn.Module):
    """``multi_modal_projector``: ``[n, audio hidden] -> [n, text hidden]``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        wide, bias = config.text.hidden_size, config.projector_bias
        self.linear_1 = Linear(config.audio.hidden_size, wide, bias=bias)
        self.linear_2 = Linear(wide, wide, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(features)))
