"""What a case of a CUDA kernel is, and the two ways to run one: emulated, and on a GPU.

A case calls the compiled module on device arrays and compares with float64. It needs torch alone, so that the
same cases run under pytest in the emulator and on a bare machine with a GPU (``python -m benchmarks gpu``).
"""

from __future__ import annotations

import importlib
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# Half the distance between neighbours, relative: what one rounding costs at most.
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)


class EmulatedArray:
    """A CPU tensor that plays the part of a device's memory: it says so to the bindings."""

    def __init__(self, tensor: Tensor, device: int = 0) -> None:
        self.tensor = tensor
        self.device = SimpleNamespace(type="cuda", index=device)
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype

    def data_ptr(self) -> int:
        return self.tensor.data_ptr()

    def stride(self) -> tuple[int, ...]:
        return self.tensor.stride()


class Kernels:
    """The compiled module and a device's memory."""

    def __init__(self, compiled: Any, *, emulated: bool) -> None:
        self.compiled = compiled
        self.emulated = emulated

    def begin(self, order: str = "first_in", seed: int = 1, os_threads: int = 1) -> None:
        """Before an emulated case: who goes on when, and the device that emulation plays by default, so that
        what a case before played does not matter."""
        self.compiled.set_emulation(order, seed, os_threads)
        self.compiled.set_emulated_device(90)

    def put(self, tensor: Tensor | None) -> Any:
        """A copy of ``tensor`` on the device, with its strides; None stays None."""
        if tensor is None:
            return None
        if self.emulated:
            copy = _copy(tensor, "cpu")
            storage = copy.untyped_storage()
            self.compiled.emulated_put(storage.data_ptr(), storage.nbytes())
            return EmulatedArray(copy)
        return _copy(tensor, "cuda")

    def empty(self, *shape: int, dtype: torch.dtype, shift: int = 0) -> Any:
        """An output: full of NaN (integers: of ones), so that what a kernel leaves out is seen.

        ``shift``: how many elements behind the beginning of an allocation it begins.
        """
        fill = float("nan") if dtype.is_floating_point else 1
        whole = self.put(torch.full((shift + math.prod(shape),), fill, dtype=dtype))
        if isinstance(whole, EmulatedArray):
            return EmulatedArray(whole.tensor[shift:].view(shape))
        return whole[shift:].view(shape)

    def get(self, array: Any) -> Tensor:
        """Back on the CPU."""
        return array.tensor if isinstance(array, EmulatedArray) else array.cpu()


def _copy(tensor: Tensor, device: str) -> Tensor:
    """With the same strides, NaN (integers: ones) between rows that lie apart, in an allocation of its own
    that is exactly as large, so that a sanitizer sees what lies beyond."""
    extents = zip(tensor.shape, tensor.stride(), strict=True)
    size = 1 + sum((n - 1) * stride for n, stride in extents) if tensor.numel() else 0
    gap = float("nan") if tensor.dtype.is_floating_point else 1
    try:
        memory = torch.full((size,), gap, dtype=tensor.dtype, device=device)
    except RuntimeError:  # a dtype that torch does not fill, as float8
        memory = torch.zeros(size, dtype=tensor.dtype, device=device)
    return memory.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


@dataclass(frozen=True)
class Case:
    """One comparison. Those that are not ``core`` run in the long suite and on GPUs alone."""

    name: str
    run: Callable[[Kernels], None]
    core: bool = True


OPS = (
    "all_to_all",
    "attention",
    "attention_backward",
    "attention_sm90",
    "layer_norm",
    "log_mel",
    "merge_attention",
    "packed_linear",
    "paged_append",
    "paged_attention",
    "rms_norm",
    "rotate",
    "sample",
    "silu_mul",
)


def cases(op: str) -> list[Case]:
    """The cases of ``tests/cuda/cases/<op>.py``."""
    found: list[Case] = importlib.import_module(f"tests.cuda.cases.{op}").CASES
    names = [case.name for case in found]
    assert len(set(names)) == len(names), f"{op}: two cases of one name"
    return found


def all_cases() -> Iterator[tuple[str, Case]]:
    for op in OPS:
        for case in cases(op):
            yield op, case


def generator(name: str) -> torch.Generator:
    """Random numbers that depend on a case's name alone."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def assert_close(got: Tensor, expected: Tensor, *, relative: float, absolute: float = 0.0) -> None:
    """``got`` within ``relative`` x magnitude + ``absolute`` of a float64 ``expected``; NaN never is."""
    assert got.shape == expected.shape, f"shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    error = (got.double() - expected).abs()
    bound = relative * expected.abs() + absolute
    bad = ~(error <= bound)
    if expected.isinf().any():
        bad &= ~(got.double() == expected)
    if bad.any():
        at = tuple(int(i) for i in bad.nonzero()[0])
        raise AssertionError(
            f"{int(bad.sum())} of {bad.numel()} off, the first at {at}: {got[at].item():.6g}, not "
            f"{expected[at].item():.6g} within {bound[at].item():.2g}"
        )
