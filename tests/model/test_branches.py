"""Branches behind shared trunks are what each trunk with each branch is alone: outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from afnext.model.attention import Branches, Packed

TRUNKS = (5, 0, 9, 3)
BRANCHES = ((4, 1), (6, 2), (3, 3, 7), ())
INV_FREQ = 100.0 ** -(torch.arange(0, 8, 2) / 8)


def layout() -> tuple[Tensor, list[Tensor]]:
    """Positions of all tokens, and for each branch where its tokens lie, its trunk's first."""
    first = sum(TRUNKS)
    positions, places = [torch.arange(n) for n in TRUNKS], []
    at = 0
    for trunk, group in zip(TRUNKS, BRANCHES, strict=True):
        for length in group:
            own = torch.arange(first, first + length)
            places.append(torch.cat((torch.arange(at, at + trunk), own)))
            positions.append(torch.arange(trunk, trunk + length))
            first += length
        at += trunk
    return torch.cat(positions), places


def test_a_branch_is_its_trunk_and_itself() -> None:
    torch.manual_seed(0)
    positions, places = layout()
    total = len(positions)
    q, k, v = (torch.randn(total, heads, 8, dtype=torch.float32) for heads in (4, 2, 2))
    grad = torch.randn(total, 4, 8)
    grad[: sum(TRUNKS)] = 0  # a trunk's own outputs are compared once, below
    results = []
    for shared in (True, False):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        if shared:
            out = Branches(TRUNKS, BRANCHES, positions, INV_FREQ)(*inputs)
        else:
            out = torch.zeros(total, 4, 8)
            for at in places:
                attend = Packed([len(at)], causal=True, positions=positions[at], inv_freq=INV_FREQ)
                alone = attend(*(x[at] for x in inputs))
                own = at >= sum(TRUNKS)
                out = out.index_put((at[own],), alone[own])
        (out * grad).sum().backward()
        results.append([out[sum(TRUNKS) :].detach(), *(x.grad for x in inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_trunk_sees_itself_alone() -> None:
    positions, _ = layout()
    q, k, v = (torch.randn(len(positions), 2, 8) for _ in "qkv")
    out = Branches(TRUNKS, BRANCHES, positions, INV_FREQ)(q, k, v)
    first = sum(TRUNKS)
    attend = Packed(TRUNKS, causal=True, positions=positions[:first], inv_freq=INV_FREQ)
    assert torch.equal(out[:first], attend(q[:first], k[:first], v[:first]))


def test_lists_must_match() -> None:
    with pytest.raises(ValueError, match="branches: 1 lists for 2 trunks"):
        Branches((1, 2), ((3,),), torch.arange(6), INV_FREQ)
