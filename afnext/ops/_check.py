"""Argument checks of the plain-torch path, in the words of the compiled one."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16)


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``condition``."""
    if not condition:
        raise ValueError(message)


def describe(tensor: Tensor) -> str:
    """``"float32 [3, 4] on cpu"``."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {list(tensor.shape)} on {tensor.device.type}"


def floating(
    op: str, name: str, tensor: Tensor, dims: int | None = None, like: Tensor | None = None
) -> None:
    """``tensor`` must be float32 or bfloat16 (on CUDA also float16), of ``dims`` dimensions, of ``like``'s
    dtype and device."""
    on_cuda = tensor.device.type == "cuda"
    if tensor.dtype not in FLOATS and not (on_cuda and tensor.dtype == torch.float16):
        wanted = "float32, bfloat16 or float16" if on_cuda else "float32 or bfloat16"
        raise ValueError(f"{op}: {name} must be {wanted}, got {describe(tensor)}")
    if dims is not None:
        require(
            tensor.dim() == dims,
            f"{op}: {name} must have {dims} dimensions, got {describe(tensor)}",
        )
    if like is not None:
        require(
            tensor.dtype == like.dtype and tensor.device == like.device,
            f"{op}: {name} must match {describe(like)} in dtype and device, got {describe(tensor)}",
        )


def typed(op: str, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """``tensor`` must have exactly this dtype and shape."""
    wanted = f"{str(dtype).removeprefix('torch.')} {list(shape)}"
    require(
        tensor.dtype == dtype and tuple(tensor.shape) == shape,
        f"{op}: {name} must be {wanted}, got {describe(tensor)}",
    )


def epsilon(op: str, eps: float) -> None:
    """``eps`` must keep a root real; what is no number is refused by the call."""
    if isinstance(eps, int | float) and not eps >= 0:
        raise ValueError(f"{op}: eps must be 0 or more, got {eps}")


def offsets(op: str, name: str, cu_seqlens: Tensor, dtype: torch.dtype = torch.int32) -> None:
    """``cu_seqlens`` must be a 1-D integer tensor of at least one entry."""
    if cu_seqlens.dtype != dtype or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"{op}: {name} must be {kind} [N + 1], got {describe(cu_seqlens)}")


def offset_values(op: str, name: str, cu_seqlens: Tensor, total: int) -> list[int]:
    """The entries of ``cu_seqlens``, which must rise from 0 to ``total``."""
    values: list[int] = cu_seqlens.tolist()
    ordered = all(a <= b for a, b in pairwise(values))
    require(
        values[0] == 0 and values[-1] == total and ordered,
        f"{op}: {name} must rise from 0 to {total} without falling",
    )
    return values
