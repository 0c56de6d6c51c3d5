"""A training recipe as typed dataclasses, read from YAML; an unknown or ill-typed key is refused."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from afnext.errors import AfnextError


@dataclass(frozen=True)
class DataConfig:
    """Synthesised clips: how many of each length in seconds, and from which seed."""

    seed: int
    clips: dict[float, int]


@dataclass(frozen=True)
class TokenizerConfig:
    """``pieces`` of byte-level BPE trained on questions about ``clips`` random scenes."""

    pieces: int = 1024
    clips: int = 5000
    seed: int = 0


@dataclass(frozen=True)
class ModelShape:
    """Geometry of the network; the vocabulary follows from the tokenizer."""

    audio_width: int = 192
    audio_layers: int = 4
    audio_heads: int = 4
    audio_ffn: int = 768
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 704
    rope_theta: float = 10_000.0
    max_positions: int = 65_536  # half an hour of audio is 45,000 tokens


@dataclass(frozen=True)
class LossWeights:
    """Weights of the objectives (0 leaves one out) and of answers among themselves.

    ``answer``: next-token loss. ``frames``: per-class activity and onsets from the encoder.
    ``alignment``: the adaptor's output is near the word embedding of the sounding class.
    ``clock``: it is near the embedding of its own time.
    ``length_power``: each token of an answer of n tokens weighs n ** -length_power.
    """

    answer: float = 1.0
    frames: float = 0.3
    alignment: float = 1.0
    clock: float = 0.0
    length_power: float = 0.3


@dataclass(frozen=True)
class MixPhase:
    """Until this fraction of the stage, draw lengths by these shares ("2-10" is a range in seconds)."""

    until: float
    shares: dict[str, float]


@dataclass(frozen=True)
class StageConfig:
    """One stage: what is trained, for how many steps, on what, towards which objectives.

    ``trainable`` is a regular expression searched in parameter names. A batch holds about
    ``audio_tokens`` audio tokens of clips of one length. The learning rate warms up over
    ``warmup_steps``, stays flat to ``flat`` of the stage, then follows a cosine to ``final_rate`` of
    its value. Every clip has ``questions`` exchanges (more in long clips), of which a share ``follow``
    are further turns of the conversation before. ``tasks`` replaces the usual weights of the kinds of
    question (``tasks.MAKERS``). ``curve`` is the length in steps of the mix and the learning-rate curve,
    by default that of the stage: a shorter stage ends on the way.
    """

    name: str
    steps: int
    trainable: str
    mix: list[MixPhase]
    losses: LossWeights = field(default_factory=LossWeights)
    learning_rate: float = 2e-3
    warmup_steps: int = 60
    flat: float = 0.35
    final_rate: float = 0.03
    audio_tokens: int = 1200
    questions: int = 7
    follow: float = 0.15
    tasks: dict[str, float] = field(default_factory=dict)
    curve: int = 0

    def progress(self, step: int) -> float:
        """How far along its curve a step is, 0 to 1."""
        return step / (self.curve or self.steps)


@dataclass(frozen=True)
class TrainConfig:
    """A whole recipe. ``evaluate_every`` and ``save_every`` count steps; 0 means never."""

    name: str
    data: DataConfig
    held_out: DataConfig
    stages: list[StageConfig]
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelShape = field(default_factory=ModelShape)
    seed: int = 0
    threads: int = 1
    workers: int = 2
    bf16: bool = True
    evaluate_every: int = 250
    save_every: int = 100
    export_dtype: str = "float32"


def load_recipe(path: str | Path) -> TrainConfig:
    """Read a YAML recipe; raises :class:`AfnextError` that names the key at fault."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AfnextError(f"no recipe at {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AfnextError(f"cannot read the recipe {path}: {error}") from None
    return _build(TrainConfig, values, path.name)


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise AfnextError(f"{where}: expected a mapping, got {values!r}")
    hints = typing.get_type_hints(kind)
    if unknown := [key for key in values if key not in hints]:
        raise AfnextError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(hints)}")
    required = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        raise AfnextError(f"{where}: missing key {missing[0]!r}")
    return kind(**{k: _convert(hints[k], v, f"{where}: {k}") for k, v in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    if isinstance(kind, types.GenericAlias):
        args = typing.get_args(kind)
        if kind.__origin__ is list and isinstance(value, list):
            return [_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
        if kind.__origin__ is dict and isinstance(value, dict):
            return {
                _convert(args[0], k, where): _convert(args[1], v, f"{where}.{k}")
                for k, v in value.items()
            }
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    raise AfnextError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
