"""What is computed again is what was: losses and gradients to the bit, in less memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from afnext.audio.windows import AudioWindow
from afnext.hub import EMBEDDED
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.training.config import Activations, ParallelConfig, TrainConfig
from afnext.training.network.recompute import set_activations
from tests.parallel.processes import spawn
from tests.training.mesh_runs import all_recorded, recorded, write_sources
from tests.training.mesh_runs import recipe as mesh_recipe

MODES: Sequence[Activations] = ("keep", "selective", "recompute")


@pytest.fixture(scope="module")
def net() -> AudioLanguageModel:
    return AudioLanguageModel.from_pretrained(EMBEDDED["nano"], dtype=torch.float32)


class Attentions(TorchDispatchMode):
    """Counts how often attention is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = torch.ops.afnext.attention
        self.count += func in (op.default, op.no_grad)
        return func(*args, **(kwargs or {}))


def step(net: AudioLanguageModel, autocast: bool) -> tuple[Tensor, dict[str, Tensor], int, int]:
    """Loss, gradients, bytes that autograd kept for backward beside parameters (what a checkpoint caches is
    not among them), and how often attention was computed.
    """
    samples = torch.randn(32_000, generator=torch.Generator().manual_seed(3)).numpy() * 0.1
    window = AudioWindow(samples, 0, len(samples))
    sound = net.config.audio_token_id
    ids = torch.tensor([[5, *[sound] * window.num_tokens, *range(20, 80)]])
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if (at := x.untyped_storage().data_ptr()) not in own:
            kept[at] = x
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with Attentions() as attentions:
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = net(ids, AudioBatch.collate([[window]]))
            assert isinstance(logits, Tensor)
            loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
        loss.backward()
    grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    size = sum(x.untyped_storage().nbytes() for x in kept.values())
    return loss.detach(), grads, size, attentions.count


@pytest.mark.parametrize("autocast", [False, True])
def test_losses_and_gradients_are_the_same_in_less_memory(
    net: AudioLanguageModel, autocast: bool
) -> None:
    found = {}
    for mode in MODES:
        set_activations(net, mode)
        found[mode] = step(net, autocast)
    set_activations(net, "keep")
    loss, grads, size, attentions = found["keep"]
    for mode in MODES[1:]:
        assert torch.equal(found[mode][0], loss)
        assert found[mode][1].keys() == grads.keys()
        for name, grad in grads.items():
            assert torch.equal(found[mode][1][name], grad), f"{mode}: {name}"
        # Beside layers' inputs there stay logits, the convolutions, the adaptor.
        assert found[mode][2] < 0.6 * size
    assert found["selective"][3] == attentions
    assert found["recompute"][3] == 2 * attentions
    assert step(net, autocast)[2:] == (size, attentions), "keep puts everything back"


@pytest.mark.sweep
def test_two_processes_compute_the_same_again(tmp_path: Path) -> None:
    """Under FSDP and where sequences are shared: what is computed again sends its messages again too."""
    write_sources(tmp_path / "sources")

    def config(mode: Activations, **mesh: ParallelConfig) -> TrainConfig:
        made = mesh_recipe(
            tmp_path / "sources", steps=2, seconds=10.0, read=0.6, tokens=120, **mesh
        )
        return dataclasses.replace(
            made, stages=[dataclasses.replace(made.stages[0], activations=mode)]
        )

    alone = recorded(config("keep"), tmp_path / "alone")
    shared = ParallelConfig(ulysses=2)
    meshes = [config("recompute", parallel=shared), config("selective", parallel=shared),
              config("selective", parallel=ParallelConfig(ring=2))]  # fmt: skip
    for answers in spawn(2, all_recorded, meshes, tmp_path / "spread", tmp_path / "alone"):
        for steps in answers:
            for found, wanted in zip(steps, alone, strict=True):
                assert found["error"] < 5e-6
                assert found["losses"] == pytest.approx(wanted["losses"], rel=2e-6)
