"""A training step of the network itself on tensors without values: what it holds at its peak, and computes.

torch's fake tensors have shapes and dtypes and no memory, so that 7B takes seconds. Whatever the code of the
model does (casts under autocast, adapters, layers computed again, what is frozen) is seen as it is.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from afnext.model import AudioLanguageModel
from afnext.parallel.cost import BACKWARD
from afnext.training.config import Activations
from afnext.training.network.answers import chunked_answer_losses
from afnext.training.network.recompute import autocast
from afnext.training.planner.load import Load

GRADIENTS, LOGITS, CASTS, ACTIVATIONS = "gradients", "logits", "weights in bfloat16", "activations"


@dataclass(frozen=True)
class DryStep:
    """Of one batch, forward and backward.

    Attributes:
        peak: bytes at the moment when most is held, by what they are, beside parameters and data.
        flops: operations, a multiply-add counting two.
        attention_flops: of them those of attention.
    """

    peak: dict[str, int]
    flops: float
    attention_flops: float


@contextmanager
def without_memory() -> Iterator[None]:
    """Tensors made inside have no values."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def dry_step(
    net: AudioLanguageModel,
    load: Load,
    bf16: bool,
    activations: Activations = "keep",
    kept_gradients: bool = False,
    answers: bool = True,
    share: Callable[[nn.Parameter], float] = lambda _: 1.0,
) -> DryStep:
    """Run one, inside :func:`without_memory`.

    Args:
        net: made there; what is trained requires gradients.
        load: of this process.
        bf16: under autocast.
        activations: what the layers of ``net`` were told to keep.
        kept_gradients: whether those of an earlier batch are there.
        answers: whether the decoder runs at all; else the loss is of what the adaptor gives.
        share: of a parameter's gradient, what stays here once it is summed over processes.
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    with _Watch(net, load, share) as watch:
        hooks = [p.register_post_accumulate_grad_hook(watch.accumulated) for p in trained]
        for parameter in trained if kept_gradients else ():
            parameter.grad = torch.empty_like(parameter)
            watch.accumulated(parameter)
        with autocast("cpu", bf16, activations):
            loss = forward(net, load, answers)
        if loss.requires_grad:
            loss.backward()
        net.zero_grad(set_to_none=True)
        for hook in hooks:
            hook.remove()
    return DryStep(dict(watch.peak), watch.flops, watch.attention_flops)


def forward(net: AudioLanguageModel, load: Load, answers: bool = True) -> Tensor:
    """The loss of a batch of zeros of this size, each token of its answers weighing as much; without
    ``answers`` a sum over what would be heard.
    """
    lm, batch = net.language_model, load.audio()
    features = [net.audio_tower(batch.features[plan.frames], plan) for plan in batch.plans]
    audio = net.multi_modal_projector.linear_2.weight.new_zeros(0, net.config.text.hidden_size)
    if features:
        starts = torch.cat([plan.window_start for plan in batch.plans])
        places = torch.cat([plan.token_index for plan in batch.plans])
        audio = net.multi_modal_projector(net.rote(torch.cat(features), starts, places))
    if not answers:
        return audio.sum()
    embeds = lm.model.embed_tokens(torch.zeros(load.tokens, dtype=torch.int64))
    if features:
        audio = audio[: load.tokens].to(embeds.dtype)
        embeds = embeds.index_copy(0, torch.arange(len(audio)), audio)
    attend = lm.packed((load.tokens,), torch.arange(load.tokens))
    hidden = lm.model(embeds, attend)[-1][: load.learnt]
    targets = torch.zeros(len(hidden), dtype=torch.int64)
    return chunked_answer_losses(lm.lm_head, hidden, targets, ()).sum()


@dataclass(eq=False)
class _Held:
    """A storage's bytes, and as what they are counted."""

    kind: str
    size: int


class _Watch(TorchDispatchMode):
    """Counts the storages that operations make, as long as they live, and the operations."""

    def __init__(self, net: nn.Module, load: Load, share: Callable[[nn.Parameter], float]) -> None:
        super().__init__()
        self.load, self.share = load, share
        self.vocabulary = next(m.num_embeddings for n, m in net.named_modules()
                               if n.endswith("embed_tokens"))  # fmt: skip
        self.weights = {id(p) for p in net.parameters()}
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.flops = self.attention_flops = 0.0
        self._kinds = WeakIdKeyDictionary()
        for parameter in net.parameters():
            self._kinds[parameter.untyped_storage()] = _Held("", 0)

    def accumulated(self, parameter: nn.Parameter) -> None:
        """A gradient has come to its place."""
        assert parameter.grad is not None
        held = self._kinds.get(storage := parameter.grad.untyped_storage())
        if held is not None:
            self.now[held.kind] -= held.size
            held.kind, held.size = GRADIENTS, round(storage.nbytes() * self.share(parameter))
            self.now[GRADIENTS] += held.size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._made(tensor, func, args)
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()
        self._count(func, args, kwargs or {}, out)
        return out

    def _made(self, tensor: Tensor, func: Any, args: Any) -> None:
        storage = tensor.untyped_storage()
        if storage in self._kinds:
            return
        kind = ACTIVATIONS
        if tensor.shape[-1:] == (self.vocabulary,):
            kind = LOGITS
        elif func is torch.ops.aten._to_copy.default and id(args[0]) in self.weights:
            kind = CASTS
        self._kinds[storage] = held = _Held(kind, storage.nbytes())
        self.now[kind] += held.size
        weakref.finalize(storage, self._gone, held)

    def _gone(self, held: _Held) -> None:
        self.now[held.kind] -= held.size

    def _count(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        packet = func._overloadpacket
        formula: Callable[..., float] | None = flop_registry.get(packet)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
            return
        ops = torch.ops.afnext
        if packet is ops.linear:
            self.flops += 2.0 * math.prod(args[0].shape) * args[1].shape[0]
        elif packet in (ops.attention, ops.attention_backward):
            forward = packet is ops.attention
            q, rest = (args[0], args[3:]) if forward else (args[2], args[7:])
            causal = rest[7]
            pairs = self.load.pairs if causal else self.load.window_pairs * q.shape[0]
            flops = 4.0 * pairs * q.shape[1] * q.shape[2] * (1.0 if forward else BACKWARD)
            self.flops += flops
            self.attention_flops += flops
