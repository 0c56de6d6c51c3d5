"""int4 weights that are rounded so that the layer's output stays, not each weight: GPTQ.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323. Columns are rounded one after the other, those of the loudest inputs first, and what
rounding one of them does to the output is taken back by the columns that are still to come.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from afnext import ops
from afnext.ops.quantize import QuantizedWeight

FORMAT, GROUP, LEVELS, ZERO = "int4-g32", 32, 15, 8
_BLOCK = 128  # columns whose effect on the rest is applied in one product
_DAMPING = 0.01  # of the mean of the diagonal: inputs that hardly vary must not be inverted


class InputStatistics:
    """Second moments of what a layer is given.

    Args:
        width: K, of the layer's input.
    """

    def __init__(self, width: int) -> None:
        self._sum = torch.zeros(width, width)
        self._rows = 0

    def add(self, x: Tensor) -> None:
        """Inputs ``[..., K]``."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        self._sum.addmm_(rows.T, rows)
        self._rows += len(rows)

    @property
    def moments(self) -> Tensor:
        """float32 ``[K, K]``: the mean of the outer products.

        Raises:
            ValueError: nothing was added.
        """
        if self._rows == 0:
            raise ValueError("calibration: a layer has seen no input")
        return self._sum / self._rows


class Rounding:
    """The order in which columns are rounded, and how each one's error goes on to the others.

    Args:
        moments: ``[K, K]`` of the inputs; layers that share their input share a ``Rounding``.
    """

    def __init__(self, moments: Tensor) -> None:
        loud = moments.diagonal()
        self.order = loud.argsort(descending=True, stable=True)
        moments = moments[self.order][:, self.order].clone()
        floor = loud.mean().clamp(min=1e-12)
        damping = _DAMPING
        while True:
            moments.diagonal().add_(damping * floor)
            lower, failed = torch.linalg.cholesky_ex(moments)
            if not failed:
                break
            damping *= 10
        self.passed_on = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)

    def __call__(self, weight: Tensor) -> QuantizedWeight:
        """Round ``weight [N, K]``, float32 or bfloat16, to "int4-g32"; scales are those of ``quantize``."""
        nearest = ops.quantize(weight, FORMAT)
        n, k = nearest.shape
        scales = nearest.scales.float().repeat_interleave(GROUP, 1)[:, :k][:, self.order]
        left = weight.detach().float()[:, self.order]
        codes = torch.empty(n, k, dtype=torch.uint8)
        inverse = torch.where(scales == 0, 0, 1 / scales)
        for start in range(0, k, _BLOCK):
            end = min(start + _BLOCK, k)
            block, within = left[:, start:end], self.passed_on[start:end, start:end]
            errors = torch.empty_like(block)
            for i in range(end - start):
                column = start + i
                code = (block[:, i] * inverse[:, column] + ZERO).round_().clamp_(0, LEVELS)
                error = block[:, i] - (code - ZERO) * scales[:, column]
                errors[:, i] = error / within[i, i]
                block[:, i:] -= errors[:, i, None] * within[i, i:]
                codes[:, self.order[column]] = code.to(torch.uint8)
            left[:, end:] -= errors @ self.passed_on[start:end, end:]
        return replace(nearest, values=_nibbles(codes))


def _nibbles(codes: Tensor) -> Tensor:
    """Two codes ``[N, K]`` a byte, as ``QuantizedWeight`` has them."""
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | codes[:, 1::2] << 4
