"""Muon against torch's, its geometry, and the learning-rate curve."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from afnext.training.config import StageConfig
from afnext.training.optimizer import Muon, build_optimizers, orthogonalise, rate_at


def test_muon_follows_torch() -> None:
    """Ten steps stay near torch.optim.Muon, which iterates in bfloat16 (hence 5 % of the way gone)."""
    torch.manual_seed(0)
    start = {shape: torch.randn(shape) for shape in ((24, 40), (40, 24), (32, 32))}
    ours = [nn.Parameter(p.clone()) for p in start.values()]
    theirs = [nn.Parameter(p.clone()) for p in start.values()]
    mine = Muon(ours, 0.01)
    reference = torch.optim.Muon(
        theirs, 0.01, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(10):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b, p in zip(ours, theirs, start.values(), strict=True):
        assert (a - b).norm() < 0.05 * (b - p).norm()


def test_orthogonalise_brings_singular_values_near_one() -> None:
    x = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(1))
    before, after = (torch.linalg.svdvals(m) for m in (x, orthogonalise(x)))
    assert (before.max() / before.min()) > 3
    assert after.min() > 0.6  # the published coefficients settle within about 0.7 to 1.2
    assert after.max() < 1.25


def test_matrices_of_layers_go_to_muon_and_frozen_ones_nowhere() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(3, 4), "layers": nn.ModuleList([nn.Linear(4, 4)])})
    named = [(f"net.{n}", p) for n, p in net.named_parameters()]
    muon, adam = build_optimizers(named, 1e-3)
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert len(adam.param_groups[0]["params"]) == 2
    net["embed"].requires_grad_(False)
    assert len(build_optimizers(named, 1e-3)[1].param_groups[0]["params"]) == 1


def test_the_rate_warms_up_stays_and_falls() -> None:
    stage = StageConfig("x", 1000, ".", [], learning_rate=1.0, warmup_steps=10, flat=0.5)
    assert rate_at(stage, 0) == pytest.approx(0.1)
    assert rate_at(stage, 9) == rate_at(stage, 499) == 1.0
    assert rate_at(stage, 750) == pytest.approx(0.515, abs=0.001)  # the middle of 1 and 0.03
    assert rate_at(stage, 999) == pytest.approx(0.03, abs=0.001)


def test_a_stage_may_end_on_its_curve() -> None:
    whole = StageConfig("x", 1000, ".", [], learning_rate=1.0)
    part = StageConfig("x", 300, ".", [], learning_rate=1.0, curve=1000)
    assert [rate_at(part, s) for s in (0, 299)] == [rate_at(whole, s) for s in (0, 299)]
