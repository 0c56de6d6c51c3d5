"""Muon against torch's, its geometry, and the learning-rate curve."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from afnext.errors import AfnextError
from afnext.training.config import StageConfig
from afnext.training.network.optimizer import (
    Muon,
    build_optimizers,
    orthogonalise,
    parts_of,
    rate_at,
)


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


def _stage(**fields: Any) -> StageConfig:
    return StageConfig("x", 1000, {"net": 1e-3}, {"s": 1.0}, **fields)


def test_matrices_of_layers_go_to_muon_and_frozen_ones_nowhere() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(3, 4), "layers": nn.ModuleList([nn.Linear(4, 4)])})
    named = {f"net.{n}": p for n, p in net.named_parameters()}
    stage = _stage(optimizer="muon")
    muon, adam = build_optimizers(named, parts_of(named, stage.train, []), stage)
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert len(adam.param_groups[0]["params"]) == 2
    stage = dataclasses.replace(stage, train={"layers": 2e-3}, freeze=["embed"])
    muon, adam = build_optimizers(named, parts_of(named, stage.train, stage.freeze), stage)
    assert [p.shape for p in adam.param_groups[0]["params"]] == [(4,)]
    assert muon.param_groups[0]["peak"] == 2e-3
    (adam,) = build_optimizers(named, parts_of(named, {"net": 1.0}, []), _stage(optimizer="adamw"))
    assert len(adam.param_groups[0]["params"]) == 3


def test_a_parameter_is_trained_or_frozen_by_one_pattern() -> None:
    names = ["a.x", "b.x"]
    assert parts_of(names, {"a": 1.0}, ["b"]) == {"a": ["a.x"], "b": ["b.x"]}
    for train, freeze, message in (
        ({"a": 1.0}, [], "b.x must be trained or frozen by one pattern; it matches nothing"),
        ({"a": 1.0, "x": 1.0}, [], "a.x must be .* it matches 'a' and 'x'"),
        ({"x": 1.0}, ["c"], "the pattern 'c' matches no parameter"),
    ):
        with pytest.raises(AfnextError, match=message):
            parts_of(names, train, freeze)


def test_the_rate_warms_up_stays_and_falls() -> None:
    stage = _stage(warmup=0.01, flat=0.5, final_rate=0.03)
    assert rate_at(stage, 0) == pytest.approx(0.1)
    assert rate_at(stage, 9) == rate_at(stage, 499) == 1.0
    assert rate_at(stage, 750) == pytest.approx(0.515, abs=0.001)  # the middle of 1 and 0.03
    assert rate_at(stage, 999) == pytest.approx(0.03, abs=0.001)


def test_each_optimizer_decays_by_what_the_stage_says() -> None:
    parameters = {
        "a.layers.0.w": nn.Parameter(torch.ones(4, 4)),
        "norm": nn.Parameter(torch.ones(4)),
    }
    for decays in ((0.05, 0.0), (0.0, 0.1)):
        stage = StageConfig("all", 1, {".": 1e-3}, {"x": 1.0}, optimizer="muon",
                            muon_weight_decay=decays[0], weight_decay=decays[1])  # fmt: skip
        muon, adamw = build_optimizers(parameters, {".": list(parameters)}, stage)
        assert [g["decay"] for g in muon.param_groups] == [decays[0]]
        assert [g["weight_decay"] for g in adamw.param_groups] == [decays[1]]
