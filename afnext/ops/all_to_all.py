"""The moves around an all-to-all between ranks that share tokens and ranks that share heads (Ulysses).

With tokens spread over ranks, each packs its queries, keys and values by the rank that will have their heads
and sends each its part. What it receives, ``[T_r, heads, D]`` from each rank r in turn, is ``[T, heads, D]``
as it lies. After attention each rank's tokens are a part of the result as it lies; what comes back from all
ranks is unpacked. Source: DeepSpeed Ulysses, https://arxiv.org/abs/2309.14509.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import Array, any_requires_grad, call, define, through_torch

NOWHERE: list[int] = []  # peers: none, into a buffer of one's own


def _check_shards(op: str, head_offsets: Sequence[int], heads: Sequence[int], count: int) -> None:
    peers, places = len(head_offsets) - 1, len(heads)
    check.require(1 <= peers <= 64, f"{op}: head_offsets must be of 1 to 64 ranks")
    rising = all(head_offsets[p] <= head_offsets[p + 1] for p in range(peers))
    check.require(
        rising and head_offsets[0] == 0 and head_offsets[-1] == places,
        f"{op}: head_offsets must rise from 0 to {places} without falling",
    )
    check.require(max(places, count) <= 384, f"{op}: at most 384 heads are supported")
    for head in heads:
        check.require(0 <= head < count, f"{op}: heads names head {head} of {count}")


def _fake_pack(x: Tensor, head_offsets: Sequence[int], heads: Sequence[int]) -> Tensor:
    check.floating("all_to_all_pack", "x", x, 3)
    _check_shards("all_to_all_pack", head_offsets, heads, x.shape[1])
    return x.new_empty(x.shape[0] * len(heads), x.shape[2])


def _fake_unpack(
    x: Tensor, head_offsets: Sequence[int], heads: Sequence[int], tokens: int, num_heads: int
) -> Tensor:
    check.floating("all_to_all_unpack", "x", x, 2)
    check.typed("all_to_all_unpack", "x", x, x.dtype, (tokens * len(heads), x.shape[1]))
    _check_shards("all_to_all_unpack", head_offsets, heads, num_heads)
    return x.new_empty(tokens, num_heads, x.shape[1])


def _pack(x: Tensor, head_offsets: Sequence[int], heads: Sequence[int]) -> Tensor:
    tokens, dim = (x.shape[0], x.shape[2]) if x.dim() == 3 else (0, 0)  # else the kernel refuses x
    out = x.new_empty(tokens * len(heads), dim)
    compiled.all_to_all_pack(x, head_offsets, heads, out, NOWHERE, 0)
    return out


def _unpack(
    x: Tensor, head_offsets: Sequence[int], heads: Sequence[int], tokens: int, num_heads: int
) -> Tensor:
    out = x.new_empty(tokens, num_heads, x.shape[-1])
    compiled.all_to_all_unpack(x, head_offsets, heads, out, NOWHERE, 0)
    return out


def _save_pack(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.head_offsets, ctx.heads = inputs
    ctx.shape = x.shape


def _backward_pack(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tokens, num_heads, _ = ctx.shape
    grad = grad.contiguous()
    return OP_UNPACK.default(grad, ctx.head_offsets, ctx.heads, tokens, num_heads), None, None


def _save_unpack(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.head_offsets, ctx.heads, _, _ = inputs


def _backward_unpack(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    return OP_PACK.default(grad, ctx.head_offsets, ctx.heads), None, None, None, None


OP_PACK = define(
    "all_to_all_pack(Tensor x, int[] head_offsets, int[] heads) -> Tensor",
    kernel=_pack,
    reference=reference.all_to_all_pack,
    fake=_fake_pack,
    cuda=True,
    backward=_backward_pack,
    save=_save_pack,
)
OP_UNPACK = define(
    "all_to_all_unpack(Tensor x, int[] head_offsets, int[] heads, int tokens, int num_heads) -> Tensor",
    kernel=_unpack,
    reference=reference.all_to_all_unpack,
    fake=_fake_unpack,
    cuda=True,
    backward=_backward_unpack,
    save=_save_unpack,
)


def all_to_all_pack(
    x: Array, head_offsets: Sequence[int], heads: Sequence[int] | None = None
) -> Array:
    """Lay ``x [T, H, D]`` out by the rank that each head goes to: what an all-to-all sends.

    Rank p is given ``heads[head_offsets[p]:head_offsets[p + 1]]``; ranks may have different numbers of
    heads. A head may go to several ranks, as where there are fewer key heads than ranks: their gradients
    are added up. Differentiable.

    Args:
        x: float32 or bfloat16 ``[T, H, D]``, unit stride in D.
        head_offsets: ``P + 1`` integers from 0 to the number of ``heads``; at most 64 ranks.
        heads: at most 384 head indices; None is every head once, in order.

    Returns:
        ``[T * len(heads), D]``, contiguous: rank p's ``[T, its heads, D]`` begins at row
        ``T * head_offsets[p]``.

    Raises:
        ValueError: naming the argument whose dtype, shape, stride or index is wrong.
    """
    if not isinstance(x, Tensor):
        return through_torch(all_to_all_pack, x, head_offsets, heads)
    if heads is None:
        heads = range(x.shape[1] if x.dim() == 3 else 0)
    return call(OP_PACK, any_requires_grad(x), x, list(head_offsets), list(heads))


def all_to_all_unpack(
    x: Array,
    head_offsets: Sequence[int],
    heads: Sequence[int] | None = None,
    num_heads: int | None = None,
) -> Array:
    """The way back: ``[T, H, D]`` from the ``[T, heads of rank p, D]`` of each rank p, one after another.

    A head that several ranks have is summed, in float32 and in the order of ranks; one that none has is 0.
    Differentiable: the gradient of either move is the other.

    Args:
        x: float32 or bfloat16 ``[T * S, D]`` with S = ``head_offsets[-1]``, contiguous.
        head_offsets, heads: as for :func:`all_to_all_pack`.
        num_heads: H; None is one more than the last of ``heads``.

    Returns:
        ``[T, H, D]``, contiguous, of x's dtype.

    Raises:
        ValueError: naming the argument whose dtype, shape, stride or index is wrong.
    """
    if not isinstance(x, Tensor):
        return through_torch(all_to_all_unpack, x, head_offsets, heads, num_heads)
    offsets = list(head_offsets)
    places = offsets[-1] if offsets else 0
    heads = list(range(places) if heads is None else heads)
    check.require(
        x.dim() == 2 and places > 0 and x.shape[0] % places == 0,
        f"all_to_all_unpack: x must be [T * {places}, D], got {check.describe(x)}",
    )
    if num_heads is None:
        num_heads = max(heads, default=-1) + 1
    tokens = x.shape[0] // places
    return call(OP_UNPACK, any_requires_grad(x), x, offsets, heads, tokens, num_heads)
