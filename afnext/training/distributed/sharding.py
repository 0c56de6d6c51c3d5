"""The trained modules over the processes of a run: torch's FSDP2, and their state as one process has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from afnext.errors import AfnextError
from afnext.model import AudioLanguageModel
from afnext.training.config import TrainConfig
from afnext.training.distributed.world import World

Result = TypeVar("Result")


class Trained(nn.Module):
    """All that is trained: the network and the heads that only training uses.

    ``forward`` calls what it is given: parameters that belong to no layer (embeddings, adaptor, heads) are
    whole on every process from its beginning to the end of backward, so that losses may use them anywhere.
    """

    def __init__(self, net: AudioLanguageModel, heads: nn.Module | None) -> None:
        super().__init__()
        self.net = net
        if heads is not None:
            self.heads = heads

    def forward(self, call: Callable[..., Result], *args: Any) -> Result:
        return call(*args)


def layers_of(net: AudioLanguageModel) -> list[nn.Module]:
    """What is gathered by itself; other parameters are gathered together."""
    return [*net.audio_tower.layers, *net.language_model.model.layers]


def shard(trained: Trained, mesh: DeviceMesh, *, bf16: bool = False, offload: bool = False) -> None:
    """Shard the parameters of each layer over ``mesh`` (in copies where it has a dimension for them), and the
    others together. Gradients are summed, not averaged: losses are shares of the step's.

    Args:
        bf16: layers are gathered in bfloat16, as autocast would make them: half the bytes. Shards
            and sums of gradients are float32.
        offload: shards, their gradients and what optimizers keep of them stay on the host.
    """
    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    mixed = MixedPrecisionPolicy()
    if bf16:
        # What goes in stays as it is: the residual stream is float32, as on one process.
        mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in layers_of(trained.net):
        fully_shard(layer, mesh=mesh, offload_policy=policy, mp_policy=mixed)
    fully_shard(trained, mesh=mesh, offload_policy=policy)
    for module in trained.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def check_offload(config: TrainConfig, world: World) -> None:
    """Raises :class:`AfnextError` where a chain wants ``offload`` and cannot have it."""
    if not config.offload:
        return
    if world.kind == "cpu":
        raise AfnextError("offload: with device cpu everything is on the host already")
    if world.size == 1:
        raise AfnextError("offload: takes several processes (torchrun)")
    if muon := [stage.name for stage in config.stages if stage.optimizer == "muon"]:
        raise AfnextError(f"offload: {muon[0]} has muon, which works on whole matrices; take adamw")


def retake(trained: nn.Module) -> None:
    """Have FSDP see anew what is trained. As a group of parameters begins, it takes the dtypes that gradients
    are summed and kept in from those that are trained, and none where all are frozen: the gradients of a
    later stage would stay in bfloat16, which their float32 shards refuse. Every process calls it.
    """
    for module in trained.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def settle(trained: nn.Module) -> None:
    """Give up what is whole after a forward that no backward followed."""
    if isinstance(trained, FSDPModule):
        trained.reshard()


def clip(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down to a norm of ``limit`` over all processes; returns the norm before."""
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    clip_grads_with_norm_(parameters, limit, norm)
    return norm


def weights(trained: Trained) -> dict[str, Any]:
    """The weights of all, on the host of the first process; on one process as they are."""
    if not isinstance(trained, FSDPModule):
        return trained.state_dict()
    return get_model_state_dict(
        trained, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
