"""What changes a network is seen, without a walk over it each time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from afnext.engine.runner import Runner
from afnext.engine.watch import Watch
from afnext.model import AudioLanguageModel
from tests.engine.models import small_model


def written(net: AudioLanguageModel) -> None:
    with torch.no_grad():
        net.language_model.lm_head.weight.mul_(2)


def moved(net: AudioLanguageModel) -> None:
    weight = net.language_model.lm_head.weight
    weight.data = weight.data.clone()


def replaced(net: AudioLanguageModel) -> None:
    head = net.language_model.lm_head
    head.weight = nn.Parameter(head.weight.detach().clone())


def added(net: AudioLanguageModel) -> None:
    net.language_model.lm_head.register_parameter("scale", nn.Parameter(torch.ones(1)))


def wrapped(net: AudioLanguageModel) -> None:
    net.language_model.lm_head = nn.Sequential(net.language_model.lm_head)  # type: ignore[assignment]


CHANGES = [written, moved, replaced, added]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: Callable[[AudioLanguageModel], None]) -> None:
    net = small_model()
    watch = Watch(net)
    first = watch.version()
    assert watch.version() == first
    change(net)
    assert watch.version() != first
    assert watch.packs


def test_a_module_that_is_not_ours_is_seen() -> None:
    net = small_model()
    watch = Watch(net)
    layer = net.language_model.model.layers[0].mlp
    head = nn.Linear(8, 8)
    layer.add_module("adapter", head)
    watch.version()
    assert not watch.packs
    del layer.adapter
    watch.version()
    assert watch.packs
    wrapped(net)  # of our own layers
    before = watch.version()
    net.language_model.lm_head[0].__class__ = nn.Linear  # as parametrisations do
    assert watch.version() == before
    assert not watch.packs


def test_a_network_that_stays_is_not_walked_over(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_model()
    runner = Runner(net)

    def walk(*_: object, **__: object) -> None:
        raise AssertionError("walks")

    for name in ("modules", "parameters", "named_parameters"):
        monkeypatch.setattr(net, name, walk)
    assert not runner.refresh()
    written(net)
    assert runner.refresh()
    net.language_model.lm_head.weight = nn.Parameter(torch.ones(64, 64))
    with pytest.raises(AssertionError, match="walks"):
        runner.refresh()
