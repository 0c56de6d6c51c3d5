"""Cases of attention over ranks: the same inputs on every rank, and what one process makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from afnext import ops
from afnext.parallel import Link, SequencePlan, attention, local_links, run_local

RAGGED = (0, 5, 5, 103, 104, 150)
"""Documents of 5, 0, 98, 1 and 46 tokens: no degree divides them, borders cross all but the shortest."""
NAMES = ("out", "dq", "dk", "dv")


@dataclass(frozen=True)
class Case:
    """One attention, with gradients, on ``ulysses x ring`` ranks."""

    ulysses: int
    ring: int
    layout: str = "zigzag"
    cu_seqlens: Sequence[int] = RAGGED
    heads: tuple[int, int] = (28, 4)
    dim: int = 16
    causal: bool = True
    window: tuple[int, int] | None = None
    turned: bool = True
    dtype: torch.dtype = torch.float32
    options: tuple[tuple[str, Any], ...] = ()
    device: str = "cpu"

    def plan(self) -> SequencePlan:
        return SequencePlan(self.ulysses, self.ring, self.layout, self.cu_seqlens)  # type: ignore[arg-type]

    def inputs(self) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """q, k, v; the gradient of out; times; frequencies."""
        random = torch.Generator().manual_seed(7)
        total, (hq, hkv) = self.cu_seqlens[-1], self.heads
        q, k, v, grad = (
            torch.randn(total, n, self.dim, generator=random).to(self.device, self.dtype)
            for n in (hq, hkv, hkv, hq)
        )
        times, inv_freq = (torch.rand(n, generator=random) for n in (total, self.dim // 2))
        return [q, k, v], grad, times.to(self.device) * 100, inv_freq.to(self.device)


def whole(case: Case, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Out, dq, dk, dv of one process."""
    qkv, grad, times, inv_freq = case.inputs()
    leaves = [x.to(dtype or case.dtype).requires_grad_() for x in qkv]
    out, _ = ops.attention(
        *leaves,
        cu_seqlens_q=torch.tensor(case.cu_seqlens, dtype=torch.int32),
        causal=case.causal,
        window=case.window,
        rotation=ops.Rotation(times, times, inv_freq) if case.turned else None,
    )
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def of_rank(case: Case, link: Link | None, rank: int) -> list[Tensor]:
    """Out, dq, dk, dv of a rank's tokens."""
    plan = case.plan()
    qkv, grad, times, inv_freq = case.inputs()
    leaves = [plan.shard(x, rank).requires_grad_() for x in qkv]
    out = attention(
        *leaves,
        plan.shard(times, rank) if case.turned else None,
        plan,
        inv_freq=inv_freq if case.turned else None,
        causal=case.causal,
        window=case.window,
        link=link,
        **dict(case.options),
    )
    return [out.detach(), *torch.autograd.grad(out, leaves, plan.shard(grad, rank))]


def local(case: Case) -> list[Tensor]:
    """Out, dq, dk, dv of the whole row, by threads."""
    links = local_links(case.ulysses, case.ring)
    parts = run_local(links, lambda link: of_rank(case, link, link.rank))
    return [case.plan().unshard(list(of_all)) for of_all in zip(*parts, strict=True)]


def error(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, beside the largest value where that is above 1."""
    if not got.numel():
        return 0.0
    return float((got.double() - wanted.double()).abs().max() / wanted.abs().max().clamp(min=1.0))


def errors_in_group(cases: Sequence[Case]) -> list[list[float]]:
    """In each process of torch's default group: its errors in each case. What one process makes of a case is
    the same however its ranks and tokens are arranged, and computed once for all arrangements.
    """
    import torch.distributed as dist

    whole_once = cache(whole)
    rank, found = dist.get_rank(), []
    for case in cases:
        of_one = whole_once(replace(case, ulysses=1, ring=1, layout="contiguous"))
        wanted = [case.plan().shard(x, rank) for x in of_one]
        found.append([error(a, b) for a, b in zip(of_rank(case, None, rank), wanted, strict=True)])
    return found


def stalled() -> str:
    """What the first of two processes says when the other has other things to do."""
    import time

    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from afnext.errors import AfnextError
    from afnext.parallel import GroupLink

    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("ring", "ulysses"))
    link = GroupLink(mesh, timeout=3.0)
    if dist.get_rank():
        time.sleep(6)
        return ""
    try:
        of_rank(Case(1, 2), link, 0)
    except AfnextError as error:
        return str(error)
    return "nothing"
