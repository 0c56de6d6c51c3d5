"""What a run is: a chain of stages, their data, objectives and schedules, as dataclasses that refuse what
cannot be. :mod:`afnext.training.recipe` reads them from YAML.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from afnext.errors import AfnextError
from afnext.training.synthesis.dataset import SceneSet
from afnext.training.synthesis.languages import require_languages

Activations = Literal["keep", "selective", "recompute"]
"""What layers keep for backward."""
ADAPTER = "lora"
"""In the names of adapters' parameters, and in the patterns that match them."""


LEAST = {
    "threads": 0,
    "workers": 0,
    "replicate": 1,
    "evaluate_every": 0,
    "save_every": 0,
    "keep": 1,
}
"""Of a chain's numbers."""
MOST = sys.float_info.max
"""What a rate may be: not infinite."""


class RecipeError(AfnextError):
    """A recipe asks for what cannot be, as is found where it runs; :func:`.recipe.told_of` adds its file."""


def _check(where: str, key: str, value: float, low: float, high: float = inf) -> None:
    """Refuse a number that is not from ``low`` to ``high``, nor one at all."""
    if not low <= value <= high:
        bounds = f"from {low:g} to {high:g}" if high < MOST else f"at least {low:g}"
        at = f"{where}: " if where else ""
        raise AfnextError(f"{at}{key} must be {bounds}, got {value:g}")


@dataclass(frozen=True)
class SynthesisConfig:
    """Training sets to make: ``sets`` of scenes by name, from banks of ``sentences`` spoken sentences.

    ``split`` is ``train`` or ``held-out``: which voices, sentences and soundfont the banks have. Sentences
    are in English and, in turns with it, in ``languages`` (:mod:`afnext.training.synthesis.languages`).
    """

    seed: int
    sentences: int
    sets: dict[str, list[SceneSet]]
    split: str = "train"
    languages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_languages(self.languages)


@dataclass(frozen=True)
class SourceConfig:
    """Conversations on disk: a folder of ``*.conversations.jsonl`` or a file of published records.

    Relative paths are of the current folder, or where it has none such of the recipe's. ``root`` is where
    relative paths of recordings begin, by default beside the records. Up to ``broken_limit`` records that
    cannot be read, or whose recordings cannot, are left out and listed in the run's ``broken.jsonl``; one
    more ends the run.
    """

    path: str
    root: str = ""
    broken_limit: int = 0

    def __post_init__(self) -> None:
        _check("", "broken_limit", self.broken_limit, 0)


@dataclass(frozen=True)
class ModelShape:
    """Geometry of a network trained from nothing; the vocabulary has ``pieces`` of byte-level BPE.

    ``times`` are written in ``tokens`` of their own or in ``digits``, see
    :func:`afnext.training.data.tokenizer.train_tokenizer`; ``rote`` is the kind of
    :class:`afnext.model.config.RoteConfig`. ``rope_theta`` must suit the longest recordings: by
    channels that turn within their length a sound cannot be found by what it is (of 64, in 5 minutes or 7,500
    tokens, 24 turn by less than a quarter with 1e6, and 4 with 1e4).
    """

    pieces: int = 1024
    audio_width: int = 256
    audio_layers: int = 4
    audio_heads: int = 4
    audio_ffn: int = 1024
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 768
    rope_theta: float = 1e6
    max_positions: int = 65_536  # half an hour of audio is 45,000 tokens
    times: Literal["tokens", "digits"] = "tokens"
    rote: Literal["axial", "time", "none"] = "axial"


@dataclass(frozen=True)
class ParallelConfig:
    """How processes share each sequence of a stage: ``ulysses`` neighbours share its heads, ``ring`` groups
    of them its keys, tokens lie as ``layout`` says, see :class:`afnext.parallel.SequencePlan`. With ``ranks``
    instead, so many share it, in the degrees that :func:`afnext.parallel.choose` finds. Gradients of keys and
    values go round in ``grad_dtype``. A run of one process has sequences whole.
    """

    ulysses: int = 1
    ring: int = 1
    layout: Literal["contiguous", "zigzag", "striped"] = "zigzag"
    ranks: int = 0
    grad_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.ulysses < 1 or self.ring < 1 or self.ranks < 0:
            raise AfnextError("parallel: ulysses and ring must be at least 1, ranks at least 0")
        if self.ranks and (self.ulysses, self.ring) != (1, 1):
            raise AfnextError("parallel: give ranks, or ulysses and ring, not both")


@dataclass(frozen=True)
class CaptionShape:
    """Geometry of the decoder that ``captions`` are written by."""

    width: int = 256
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True)
class LossWeights:
    """Weights of the objectives; 0 leaves one out. Those that say no other need labels (``targets``).

    ``answer``: next-token loss of the assistant's texts. ``frames``: per-label activity and onsets from
    the encoder, by a head that is thrown away. ``spelling``: another spells what is said (CTC).
    ``reading``: the adaptor's output, read by the decoder's own word embeddings, spells what that head
    does. ``alignment``: it is near the embedding of what sounds. ``clock``: it is near that of its own time.
    ``size``: it is at most 1.5 times as long as embeddings are.
    ``length_power``: each token of an answer of n tokens weighs n ** -length_power.
    ``captions``: as ``answer``, of texts about recordings, by a decoder that attends to the encoder's output
    and is thrown away (:mod:`afnext.training.network.captions`); it needs no labels.
    """

    answer: float = 1.0
    frames: float = 0.0
    spelling: float = 0.0
    reading: float = 0.0
    alignment: float = 0.0
    clock: float = 0.0
    size: float = 0.0
    length_power: float = 0.0
    captions: float = 0.0

    def __post_init__(self) -> None:
        for key, weight in dataclasses.asdict(self).items():
            if key != "length_power":
                _check("", key, weight, 0, MOST)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters of ``rank``, scaled by ``alpha / rank``, on the linear layers whose names ``targets``
    (a regular expression) is found in; ``dropout`` of what goes into them, in training.
    """

    rank: int
    alpha: float
    targets: str
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise AfnextError(
                f"rank must be at least 1, alpha above 0, dropout at least 0 and below 1, got rank "
                f"{self.rank}, alpha {self.alpha:g}, dropout {self.dropout:g}"
            )
        try:
            re.compile(self.targets)
        except re.error as error:
            raise AfnextError(f"targets {self.targets!r} is no pattern: {error}") from None


@dataclass(frozen=True)
class StageConfig:
    """One stage: what is trained, for how many steps, on what, towards which objectives.

    Attributes:
        name: by which other stages and the log know it.
        steps: optimizer steps.
        train: patterns (regular expressions, searched in names of parameters) with their learning rates.
        freeze: patterns of what is not trained. Every parameter must match exactly one of all patterns,
            every pattern a parameter.
        audio_seconds: recordings of a conversation, together; longer ones are left out.
        context_tokens: of a conversation; longer ones are left out.
        batch_tokens: of a batch, about; a step has ``accumulate`` of them.
        mixture: shares of tokens by name of a source.
        mixture_of: other stages whose mixtures are added, with a factor.
        hearing: ``"audio"``; or ``"script"``: a recording's labels as text stand in its place.
        answers: how it is said how many sounds there are: ``"listed"``, as the data say it, after what is
            counted; or ``"direct"``, by the number alone.
        per_recording: conversations about a recording in a step, at most.
        per_recording_of: the same by name of a source, where it is another: about long recordings more cost
            little beside their audio.
        losses: objectives.
        optimizer: ``"muon"`` (for the matrices of layers, AdamW for the rest) or ``"adamw"``.
        warmup: share of the steps in which the learning rates rise.
        flat: share of the steps until which they stay, before a cosine.
        final_rate: what of them is left at the end.
        weight_decay: of AdamW: with it all parameters, with Muon those that are no matrices of layers.
        muon_weight_decay: of Muon.
        clip: largest norm of the gradients.
        spike: a step whose gradients are more than so many times as long as of late is left out; 0: none is.
        accumulate: batches of a step, shared out among the processes of a run.
        parallel: how processes share each sequence. Each conversation has its recordings to itself then, so
            that a batch grows by what ``per_recording`` would have shared: 1 keeps it to ``batch_tokens``.
        lora: adapters that this stage trains. What they are added to, as everything, is trained or frozen by
            its pattern; adapters are trained by patterns with ``lora`` in them, which match nothing else, and
            where there is none they rest.
        activations: what layers keep for backward: ``"keep"`` all, ``"selective"`` what goes in and what
            attention gives, ``"recompute"`` what goes in: see :mod:`afnext.training.network.recompute`.
    """

    name: str
    steps: int
    train: dict[str, float]
    mixture: dict[str, float]
    freeze: list[str] = field(default_factory=list)
    audio_seconds: float = 30.0
    context_tokens: int = 8192
    batch_tokens: int = 8192
    mixture_of: dict[str, float] = field(default_factory=dict)
    hearing: Literal["audio", "script"] = "audio"
    answers: Literal["listed", "direct"] = "listed"
    per_recording: int = 6
    per_recording_of: dict[str, int] = field(default_factory=dict)
    losses: LossWeights = field(default_factory=LossWeights)
    optimizer: Literal["muon", "adamw"] = "adamw"
    warmup: float = 0.03
    flat: float = 0.0
    final_rate: float = 0.0
    weight_decay: float = 0.0
    muon_weight_decay: float = 0.05
    clip: float = 1.0
    spike: float = 0.0
    accumulate: int = 1
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    lora: LoraConfig | None = None
    activations: Activations = "keep"

    def __post_init__(self) -> None:
        for key in ("steps", "batch_tokens", "accumulate", "audio_seconds", "context_tokens",
                    "per_recording"):  # fmt: skip
            _check(self.name, key, getattr(self, key), 1)
        for source, records in self.per_recording_of.items():
            _check(self.name, f"per_recording_of: {source}", records, 1)
        for key in ("warmup", "flat", "final_rate"):
            _check(self.name, key, getattr(self, key), 0, 1)
        for key in ("weight_decay", "muon_weight_decay", "spike"):
            _check(self.name, key, getattr(self, key), 0)
        if not self.clip > 0:
            raise AfnextError(f"{self.name}: clip must be above 0, got {self.clip:g}")
        if not self.train:
            raise AfnextError(f"{self.name}: train names nothing")
        for pattern, rate in self.train.items():
            _check(self.name, f"train: {pattern}", rate, 0, MOST)
        if self.lora and not any(ADAPTER in pattern for pattern in self.train):
            raise AfnextError(
                f"{self.name}: lora is given, and train has no rate for it, as lora: 1e-4"
            )


@dataclass(frozen=True)
class TrainConfig:
    """A chain of stages.

    Attributes:
        name: of the chain, and of the model that it makes.
        stages: in order; each begins with the weights the one before ended with.
        init: a model to begin with ("nano", a folder or a hub id); otherwise ``model`` is drawn at random.
        model: geometry, where there is no ``init``.
        audio_tower: a model whose audio tower, or a Whisper whose encoder, a network drawn at random begins
            with, of the same geometry.
        caption_decoder: geometry, where a stage trains towards ``captions``.
        synthesis: a training set to make; its sets are sources of these names.
        held_out: the like, for what is watched while training.
        sources: others, by name.
        seed: of weights and of what is drawn.
        bf16: compute in bfloat16 under autocast.
        device: what the network is trained on, ``"cpu"`` or ``"cuda"``.
        threads, workers: of torch, and processes that make training sets (and batches, where the network is
            not on the CPU itself); 0: as many as there are cores.
        prefetch: steps whose batches are made ahead of the one in use.
        peak_tflops: of a process's device, which the log compares with; 0: that of a product of matrices,
            measured when a stage begins.
        replicate: copies of the parameters; each is sharded over its part of the run's processes.
        offload: keep sharded parameters, gradients and the optimizers' state on the host, and step there; for
            several processes with GPUs.
        timeout: seconds for which a process may wait for the others, or for its data, within a step; between
            steps, where checkpoints and models are written, six times as long.
        evaluate_every, save_every: steps; 0 for never.
        keep: how many of the newest checkpoints stay.
        export_dtype: of the weights in the model folder.
    """

    name: str
    stages: list[StageConfig]
    init: str = ""
    audio_tower: str = ""
    model: ModelShape = field(default_factory=ModelShape)
    caption_decoder: CaptionShape = field(default_factory=CaptionShape)
    synthesis: SynthesisConfig | None = None
    held_out: SynthesisConfig | None = None
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    seed: int = 0
    bf16: bool = True
    device: str = "cpu"
    threads: int = 0
    workers: int = 0
    prefetch: int = 8
    peak_tflops: float = 0.0
    replicate: int = 1
    offload: bool = False
    timeout: float = 600.0
    evaluate_every: int = 250
    save_every: int = 100
    keep: int = 2
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if double := [name for name in names if names.count(name) > 1]:
            raise AfnextError(f"{self.name}: two stages are called {double[0]!r}")
        if self.init and self.audio_tower:
            raise AfnextError(
                f"{self.name}: init has an audio tower already; leave out audio_tower"
            )
        if self.prefetch < 1 or self.timeout <= 0 or self.peak_tflops < 0:
            raise AfnextError(
                f"{self.name}: prefetch must be at least 1, timeout above 0, peak_tflops at least 0"
            )
        for key, least in LEAST.items():
            _check(self.name, key, getattr(self, key), least)
        if self.held_out and self.held_out.split == "train":
            raise AfnextError(
                f"{self.name}: held_out: split must be held-out: the voices and sentences of train are "
                "trained on"
            )
        for stage in self.stages:
            mixture_of(stage, self.stages)
        if len({stage.lora for stage in self.stages} - {None}) > 1:
            raise AfnextError(f"{self.name}: stages have different lora; a chain has one")

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters of the chain."""
        return next((stage.lora for stage in self.stages if stage.lora), None)

    def stage(self, name: str) -> StageConfig:
        """The stage of a name."""
        return next(stage for stage in self.stages if stage.name == name)


def mixture_of(stage: StageConfig, stages: list[StageConfig]) -> dict[str, float]:
    """Shares of tokens by name of a source, with what the stage takes of other stages' mixtures; each
    mixture's shares add up to its factor.

    Raises:
        AfnextError: it names no stage, or itself.
    """
    known = {other.name: other for other in stages}

    def shares(of: StageConfig, below: tuple[str, ...]) -> dict[str, float]:
        total = sum(of.mixture.values()) or 1.0
        found = {name: share / total for name, share in of.mixture.items()}
        for name, factor in of.mixture_of.items():
            if name not in known:
                raise AfnextError(f"{stage.name}: mixture_of: no stage is called {name!r}")
            if name in below:
                raise AfnextError(f"{stage.name}: mixture_of leads back to {name!r}")
            for source, share in shares(known[name], (*below, name)).items():
                found[source] = found.get(source, 0.0) + factor * share
        return found

    return shares(stage, (stage.name,))
