"""int4 weights that are rounded so that the layer's output stays, not each weight: GPTQ.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323. Columns are rounded one after the other, those of the loudest inputs first, and what
rounding one of them does to the output is taken back by the columns that are still to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from afnext import ops
from afnext.ops.quantize import QuantizedWeight

FORMAT, GROUP, LEVELS, ZERO = "int4-g32", 32, 15, 8
_BLOCK = 128  # columns whose effect on the rest is applied in one product
_DAMPING = 0.01  # of the mean of the diagonal: inputs that hardly vary must not be inverted
_SMALL = 2048  # of K: one thread has the matrix turned round before several have met


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

    Raises:
        ValueError: they hold NaN or infinity.
    """

    def __init__(self, moments: Tensor) -> None:
        if not moments.isfinite().all():
            raise ValueError("calibration: a layer's inputs hold NaN or infinity")
        loud = moments.diagonal()
        self.order = loud.argsort(descending=True, stable=True)
        with _one_thread() if len(loud) < _SMALL else nullcontext():
            self.passed_on = _passed_on(moments[self.order][:, self.order])

    def __call__(self, weight: Tensor) -> QuantizedWeight:
        """Round ``weight [N, K]``, float32 or bfloat16, to "int4-g32"; scales are those of ``quantize``."""
        nearest = ops.quantize(weight, FORMAT)
        n, k = nearest.shape
        # A column of the weight is a row here, one stretch of memory.
        scales = nearest.scales.float().repeat_interleave(GROUP, 1)[:, :k].T[self.order]
        left = weight.detach().float().T[self.order].contiguous()
        codes = torch.empty(k, n, dtype=torch.uint8)
        inverse = torch.where(scales == 0, 0, 1 / scales)
        for start in range(0, k, _BLOCK):
            end = min(start + _BLOCK, k)
            block, within = left[start:end], self.passed_on[start:end, start:end]
            errors = torch.empty_like(block)
            with _one_thread():
                for i in range(end - start):
                    column = start + i
                    code = (block[i] * inverse[column] + ZERO).round_().clamp_(0, LEVELS)
                    rest = block[i] - (code - ZERO) * scales[column]
                    torch.div(rest, within[i, i], out=errors[i])
                    block[i:].addr_(within[i, i:], errors[i], alpha=-1)
                    codes[self.order[column]] = code.to(torch.uint8)
            left[end:].addmm_(self.passed_on[start:end, end:].T, errors, alpha=-1)
        codes = codes.T.contiguous()
        return replace(nearest, values=_nibbles(codes))


def _passed_on(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, damped as much as it takes."""
    floor = moments.diagonal().mean().clamp(min=1e-12)
    moments, damping = moments.clone(), _DAMPING
    while True:
        moments.diagonal().add_(damping * floor)
        lower, failed = torch.linalg.cholesky_ex(moments)
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
        damping *= 10


@contextmanager
def _one_thread() -> Iterator[None]:
    """For steps so small that threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _nibbles(codes: Tensor) -> Tensor:
    """Two codes ``[N, K]`` a byte, as ``QuantizedWeight`` has them."""
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | codes[:, 1::2] << 4
