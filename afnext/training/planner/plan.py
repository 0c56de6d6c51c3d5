"""Memory of a process and time of a step, stage by stage: a dry step's figures, shared out over a mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from afnext.errors import AfnextError
from afnext.hub import EMBEDDED
from afnext.model import AudioLanguageModel, ModelConfig
from afnext.model.info import geometry
from afnext.parallel import Machine, Shape, cost
from afnext.parallel.cost import H100, gather_seconds
from afnext.training.config import ParallelConfig, StageConfig, TrainConfig
from afnext.training.data.tokenizer import train_tokenizer
from afnext.training.distributed.sharding import Trained, layers_of
from afnext.training.distributed.world import mesh_of
from afnext.training.loop import CONSTANT
from afnext.training.network.lora import activate, add_adapters
from afnext.training.network.loss import heads_of
from afnext.training.network.optimizer import build_optimizers, parts_of_stage
from afnext.training.network.recompute import set_activations
from afnext.training.planner.dry_step import (
    ACTIVATIONS,
    CASTS,
    GRADIENTS,
    LOGITS,
    DryStep,
    dry_step,
    without_memory,
)
from afnext.training.planner.load import Load
from afnext.training.run.export import model_config

FLOAT = 4  # bytes: parameters, gradients and optimizer state are float32
HALF = 2  # of bfloat16


@dataclass(frozen=True)
class Resources:
    """What a chain is to run on.

    Attributes:
        processes: of the run, a device each.
        parallel: how they share sequences; by default what each stage says.
        machine: of the devices, and what connects them.
        peak: operations a second of one device, in the dtype that is computed in.
        utilisation: share of the peak that a step's computing reaches: assumed, not found.
        device_memory: bytes of a device; 0: not known.
    """

    processes: int = 1
    parallel: ParallelConfig | None = None
    machine: Machine = H100
    peak: float = 989e12  # H100 SXM, dense bfloat16, by its data sheet
    utilisation: float = 0.4
    device_memory: float = 0.0


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes.

    Attributes:
        stage: which.
        mesh: (groups of processes with batches of their own, ring, Ulysses).
        load: a process's part of a batch.
        counts: for each pattern its parameters and its learning rate (None: frozen).
        memory: bytes of a process's device at the peak, by part; ``host``: what is offloaded.
        tokens, audio_seconds: of a step.
        flops: of a step, of all processes; ``attention``: attention's share of them.
        seconds: of a step: computing, and waiting for messages that it does not hide.
    """

    stage: StageConfig
    mesh: tuple[int, int, int]
    load: Load
    counts: dict[str, tuple[int, float | None]]
    memory: dict[str, float]
    host: float
    tokens: int
    audio_seconds: float
    flops: float
    attention: float
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Bytes of a device."""
        return sum(self.memory.values())

    @property
    def days(self) -> float:
        """Of the stage."""
        return sum(self.seconds.values()) * self.stage.steps / 86_400


def plan(
    config: TrainConfig, resources: Resources | None = None, model: ModelConfig | None = None
) -> list[StagePlan]:
    """Plan every stage of a chain; no weights are read, nothing is allocated. Heads that are thrown away are
    counted as parameters, not by what they compute.

    Args:
        config: the chain.
        resources: by default one process.
        model: geometry; by default the chain's own, or that of the folder that it begins with.

    Raises:
        AfnextError: a stage's patterns do not fit, processes cannot be shared out, or the geometry is not
            known.
    """
    resources = Resources() if resources is None else resources
    if resources.processes % config.replicate:
        raise AfnextError(
            f"replicate: {config.replicate} copies cannot be shared out among {resources.processes} processes"
        )
    model = model_of(config) if model is None else model
    with without_memory():
        net = AudioLanguageModel(model)
        add_adapters(net, config)
        trained = Trained(net, heads_of(config, model))
        return [
            plan_stage(config, index, trained, resources, Load.of_stage(stage))
            for index, stage in enumerate(config.stages)
        ]


def plan_stage(
    config: TrainConfig, index: int, trained: Trained, resources: Resources, whole: Load
) -> StagePlan:
    """Plan a stage whose batches are ``whole``, inside :func:`.dry_step.without_memory`."""
    stage, net = config.stages[index], trained.net
    wanted = replace(stage, parallel=resources.parallel or stage.parallel)
    groups, ring, ulysses = mesh = mesh_of(wanted, net.config.text, resources.processes)
    load = whole.shared(ring * ulysses)
    parameters = {n: p for n, p in trained.named_parameters() if CONSTANT not in n}
    parts = parts_of_stage(parameters, stage)
    names = {name for pattern in stage.train for name in parts[pattern]}
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(name in names)
    activate(net, config, index)
    set_activations(net, stage.activations)
    batches = stage.accumulate // groups
    step = dry_step(
        net, load, config.bf16, stage.activations,
        kept_gradients=batches > 1 and resources.processes == 1, answers=bool(stage.losses.answer),
        share=_kept_gradient(net, batches, resources.processes, config.replicate),
    )  # fmt: skip
    counts = {
        pattern: (sum(parameters[n].numel() for n in matched), stage.train.get(pattern))
        for pattern, matched in parts.items()
    }
    state = optimizer_bytes(parameters, parts, stage)
    memory, host = memory_of(trained, step, load, state, batches, config, resources)
    frames = sum(whole.windows) * stage.accumulate
    return StagePlan(
        stage, mesh, load, counts, memory, host,
        tokens=sum(whole.documents) * stage.accumulate, audio_seconds=frames / 100,
        flops=step.flops * stage.accumulate * ring * ulysses,
        attention=step.attention_flops / step.flops,
        seconds=_seconds(trained, step, whole, mesh, batches, config, resources),
    )  # fmt: skip


def model_of(config: TrainConfig) -> ModelConfig:
    """A chain's geometry; that of a published model where the folder that it begins with is not here and
    the folder's name says which.
    """
    if not config.init:
        made = train_tokenizer([], config.model.pieces, config.model.times)
        known = ModelConfig.from_dict(model_config(config.model, made))
        # Trained on nothing the tokenizer has no pieces but bytes.
        missing = config.model.pieces - (made.get_vocab_size() - _added(made))
        return replace(known, text=replace(known.text, vocab_size=known.text.vocab_size + missing))
    folder = EMBEDDED.get(config.init)
    try:
        return ModelConfig.from_folder(folder or config.init)
    except AfnextError:
        name = next((n for n in ("7b",) if config.init.lower().endswith(n)), None)
        if name is None:
            raise
        return geometry(name)


def _added(tokenizer: object) -> int:
    return len(tokenizer.get_added_tokens_decoder())  # type: ignore[attr-defined]


def optimizer_bytes(
    parameters: Mapping[str, nn.Parameter], parts: Mapping[str, list[str]], stage: StageConfig
) -> float:
    """AdamW's two moments, Muon's one."""
    return float(
        sum(
            p.numel() * FLOAT * (1 if "momentum" in optimizer.defaults else 2)
            for optimizer in build_optimizers(parameters, parts, stage)
            for group in optimizer.param_groups
            for p in group["params"]
        )
    )


def _bytes(module: nn.Module, trained: bool = False) -> float:
    return float(
        sum(p.numel() * FLOAT for p in module.parameters() if p.requires_grad or not trained)
    )


def _kept_gradient(
    net: AudioLanguageModel, batches: int, processes: int, replicate: int
) -> Callable[[nn.Parameter], float]:
    """What stays of a gradient in a backward of several processes: of a layer a shard, which adds to that of
    the batch before, if there was one; what belongs to no layer is summed at the end.
    """
    if processes == 1:
        return lambda _: 1.0
    inside = {id(p) for layer in layers_of(net) for p in layer.parameters()}
    shard = replicate / processes if batches == 1 else 0.0
    return lambda parameter: shard if id(parameter) in inside else 1.0


def memory_of(
    trained: Trained, step: DryStep, load: Load, state: float, batches: int, config: TrainConfig,
    resources: Resources,
) -> tuple[dict[str, float], float]:  # fmt: skip
    """Bytes by part, and those on the host: in a run of several parameters, gradients and optimizer state are
    shards, and the layers at work are whole, in bfloat16 where the run computes in it. Gradients are shards
    from a process's second batch on.
    """
    everything, learnt = _bytes(trained), _bytes(trained, True)
    found = {
        "parameters": everything,
        "gradients": float(step.peak.get(GRADIENTS, 0)),
        "optimizer state": state,
        CASTS: float(step.peak.get(CASTS, 0)),
        ACTIVATIONS: float(step.peak.get(ACTIVATIONS, 0)),
        LOGITS: float(step.peak.get(LOGITS, 0)),
        "data": float(load.data_bytes),
        "communication": 0.0,
    }
    if resources.processes == 1:
        return found, 0.0
    shards = resources.processes // config.replicate
    net = trained.net
    layers = layers_of(net)
    inside = sum(map(_bytes, layers))
    root, outside = everything - inside, {p for p in trained.parameters() if p.ndim > 1}
    outside -= {p for layer in layers for p in layer.parameters()} | set(_embeddings(trained))
    largest = max(map(_bytes, layers)) * _gathered(config) / FLOAT
    largest_learnt = max(_bytes(layer, True) for layer in layers)
    kept = {
        "parameters": everything / shards,
        "gradients": learnt / shards if batches > 1 else 0.0,
        "optimizer state": state / shards,
    }
    host = 0.0
    if config.offload:
        host = (everything + learnt + state) / shards
        kept = dict.fromkeys(kept, 0.0)
    # Whole at once: what belongs to no layer, a layer at work and the next; gradients until they are summed.
    kept["parameters"] += root + 2 * largest
    kept["gradients"] += found["gradients"]
    text = net.config.text
    keys = 2 * text.num_key_value_heads * text.head_dim * load.tokens
    ring = 2 * keys * (2 + FLOAT) if load.ranks > 1 else 0  # that come and go, with their gradients
    kept["communication"] = largest + largest_learnt + ring
    # Layers come as what autocast would make of them.
    kept[CASTS] = min(found[CASTS], sum(p.numel() * HALF for p in outside))
    return found | kept, host


def _gathered(config: TrainConfig) -> int:
    """Bytes of a layer's parameter that is whole."""
    return HALF if config.bf16 else FLOAT


def _embeddings(trained: Trained) -> Iterator[nn.Parameter]:
    """Of which rows are read, not products made."""
    for module in trained.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters()


def _seconds(
    trained: Trained, step: DryStep, whole: Load, mesh: tuple[int, int, int], batches: int,
    config: TrainConfig, resources: Resources,
) -> dict[str, float]:  # fmt: skip
    _, ring, ulysses = mesh
    net = trained.net
    machine, text = resources.machine, net.config.text
    computing = batches * step.flops / (resources.peak * resources.utilisation)
    shape = Shape(sum(whole.documents), text.num_attention_heads, text.num_key_value_heads,
                  text.head_dim)  # fmt: skip
    sharing = 0.0
    if ring * ulysses > 1:
        sharing = text.num_hidden_layers * batches * cost(shape, ulysses, ring, machine).exposed
    shards = resources.processes // config.replicate
    inside = sum(map(_bytes, layers_of(net)))
    learnt = _bytes(trained, True)
    size = _bytes(trained) - inside * (1 - _gathered(config) / FLOAT)
    gathering = batches * gather_seconds(size, learnt, shards, config.replicate, machine)
    return {
        "computing": computing,
        "sequences": sharing,
        "parameters": max(0.0, gathering - computing),
    }
