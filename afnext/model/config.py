"""Geometry of a model, read from and written to transformers' ``config.json``.

Every number is checked before anything is allocated, so that a hostile or broken file ends in one
clear line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from afnext.errors import CheckpointError

MODEL_TYPES = ("musicflamingo", "audioflamingo3")
ARCHITECTURES = {
    "musicflamingo": "MusicFlamingoForConditionalGeneration",
    "audioflamingo3": "AudioFlamingo3ForConditionalGeneration",
}
DTYPES = ("float32", "bfloat16", "float16")
ROTE_KINDS = ("axial", "time", "none")
CONFIG_BYTES_MAX = 1 << 22


class _Reader:
    """Typed, bounded reads from one JSON object; an error names the key and what was found."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def fail(self, key: str, wanted: str) -> CheckpointError:
        shown = repr(self.data.get(key))
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return CheckpointError(f"config.json: {self.where}{key} must be {wanted}, got {shown}")

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(key, f"an integer from {low} to {high}")
        return value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        return None if self.data.get(key) is None else self.integer(key, 0, low, high)

    def real(self, key: str, default: float, low: float, high: float) -> float:
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, "a number")
        if not low <= value <= high:  # false for NaN too
            raise self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.data.get(key, default)
        if value not in allowed:
            raise self.fail(key, " or ".join(map(repr, allowed)))
        return str(value)

    def ids(self, key: str) -> int | tuple[int, ...] | None:
        value = self.data.get(key)
        if value is None:
            return None
        many = value if isinstance(value, list) else [value]
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in many):
            raise self.fail(key, "a token id or a list of them")
        return tuple(many) if isinstance(value, list) else int(value)

    def section(self, key: str) -> _Reader:
        value = self.data.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.fail(key, "an object")
        return _Reader(value, f"{self.where}{key}.")


@dataclass(frozen=True)
class AudioConfig:
    """The encoder: Whisper's, over 128 mel bins and windows of 30 s."""

    hidden_size: int = 1280
    num_hidden_layers: int = 32
    num_attention_heads: int = 20
    intermediate_size: int = 5120
    num_mel_bins: int = 128
    max_source_positions: int = 1500

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def window_tokens(self) -> int:
        """Audio tokens of a full window, after pooling by two."""
        return self.max_source_positions // 2

    @classmethod
    def _read(cls, r: _Reader) -> AudioConfig:
        r.choice("activation_function", "gelu", ("gelu",))
        out = cls(
            hidden_size=r.integer("hidden_size", cls.hidden_size, 1, 1 << 16),
            num_hidden_layers=r.integer("num_hidden_layers", cls.num_hidden_layers, 1, 1024),
            num_attention_heads=r.integer("num_attention_heads", cls.num_attention_heads, 1, 1024),
            intermediate_size=r.integer("intermediate_size", cls.intermediate_size, 1, 1 << 18),
            num_mel_bins=r.integer("num_mel_bins", cls.num_mel_bins, 128, 128),
            max_source_positions=r.integer(
                "max_source_positions", cls.max_source_positions, 1500, 1500
            ),
        )
        if out.hidden_size % out.num_attention_heads or out.head_dim > 256:
            raise r.fail(
                "num_attention_heads",
                f"a divisor of hidden_size {out.hidden_size} that leaves heads of at most 256",
            )
        return out

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_type": "audioflamingo3_encoder",
            "activation_function": "gelu",
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
        }


@dataclass(frozen=True)
class TextConfig:
    """The decoder: Qwen2.5's."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scale: float = 1.0
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = False
    bos_token_id: int | tuple[int, ...] | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | tuple[int, ...] | None = None

    @classmethod
    def _read(cls, r: _Reader) -> TextConfig:
        r.choice("hidden_act", "silu", ("silu",))
        if r.boolean("use_sliding_window", False):
            raise r.fail("use_sliding_window", "false (sliding-window layers are not supported)")
        hidden = r.integer("hidden_size", cls.hidden_size, 1, 1 << 17)
        heads = r.integer("num_attention_heads", cls.num_attention_heads, 1, 4096)
        kv_heads = r.optional_integer("num_key_value_heads", 1, 4096) or heads
        head_dim = r.optional_integer("head_dim", 2, 256)
        if head_dim is None and hidden % heads:
            raise r.fail("num_attention_heads", f"a divisor of hidden_size {hidden}")
        if heads % kv_heads:
            raise r.fail("num_key_value_heads", f"a divisor of num_attention_heads {heads}")
        head_dim = head_dim or hidden // heads
        if head_dim % 2 or head_dim > 256:
            raise r.fail(
                "num_attention_heads", f"such that heads are even and at most 256, not {head_dim}"
            )
        theta, scale = _read_rope(r, cls.rope_theta)
        return cls(
            vocab_size=r.integer("vocab_size", cls.vocab_size, 1, 1 << 22),
            hidden_size=hidden,
            intermediate_size=r.integer("intermediate_size", cls.intermediate_size, 1, 1 << 19),
            num_hidden_layers=r.integer("num_hidden_layers", cls.num_hidden_layers, 1, 1024),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=r.real("rms_norm_eps", cls.rms_norm_eps, 0.0, 1.0),
            rope_theta=theta,
            rope_scale=scale,
            max_position_embeddings=r.integer(
                "max_position_embeddings", cls.max_position_embeddings, 1, 1 << 30
            ),
            tie_word_embeddings=r.boolean("tie_word_embeddings", False),
            bos_token_id=r.ids("bos_token_id"),
            eos_token_id=r.ids("eos_token_id"),
            pad_token_id=r.ids("pad_token_id"),
        )

    def to_dict(self) -> dict[str, Any]:
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scale != 1.0:
            rope = {**rope, "rope_type": "linear", "factor": self.rope_scale}
        plain = {n: getattr(self, n) for n in self.__dataclass_fields__ if not n.startswith("rope")}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
        return {
            "model_type": "qwen2",
            "hidden_act": "silu",
            "use_sliding_window": False,
            **plain,
            "rope_parameters": rope,
        }


def _read_rope(r: _Reader, default_theta: float) -> tuple[float, float]:
    """(theta, linear factor) from ``rope_parameters`` or the older ``rope_theta``/``rope_scaling``."""
    rope = r.section("rope_parameters" if r.data.get("rope_parameters") else "rope_scaling")
    kind_key = "rope_type" if "rope_type" in rope.data else "type"
    kind = rope.choice(kind_key, "default", ("default", "linear"))
    source = rope if "rope_theta" in rope.data else r
    theta = source.real("rope_theta", default_theta, 1.0, 1e15)
    return theta, rope.real("factor", 1.0, 1e-3, 1e6) if kind == "linear" else 1.0


@dataclass(frozen=True)
class RoteConfig:
    """Rotary time embedding of encoder features.

    Attributes:
        kind: ``axial`` is what the released checkpoints compute, ``time`` the paper's formula.
        theta: base of the frequencies.
        max_position: what positions are divided by (``axial``); transformers takes ``theta``.
        partial: share of the channels that one axis turns.
        token_seconds: length of one audio token.
        window_factor, time_factor: multiply the normalised position on each axis (``axial``).
            transformers has 1 and 2 pi; an early vLLM port had 2 pi on both and theta 1200 / (2 pi).
    """

    kind: str = "axial"
    theta: float = 1200.0
    max_position: float = 1200.0
    partial: float = 0.2
    token_seconds: float = 0.04
    window_factor: float = 1.0
    time_factor: float = 2 * math.pi

    def channels(self, hidden_size: int) -> int:
        """Channels that one axis turns."""
        return int(hidden_size * self.partial) + 1 & ~1

    @classmethod
    def _read(cls, r: _Reader) -> RoteConfig:
        rope = r.section("rope_parameters")
        rope.choice("rope_type", "default", ("default",))
        source = rope if "rope_theta" in rope.data else r
        theta = source.real("rope_theta", cls.theta, 1.0, 1e9)
        source = rope if "partial_rotary_factor" in rope.data else r
        partial = source.real("partial_rotary_factor", cls.partial, 0.0, 0.5)
        step = r.real("audio_frame_step", 0.01, 1e-4, 1.0)
        ours = r.section("rote")
        return cls(
            kind=ours.choice("kind", cls.kind, ROTE_KINDS),
            theta=theta,
            max_position=ours.real("max_position", theta, 1.0, 1e9),
            partial=partial,
            token_seconds=step * 4,
            window_factor=ours.real("window_factor", cls.window_factor, -1e3, 1e3),
            time_factor=ours.real("time_factor", cls.time_factor, -1e3, 1e3),
        )

    def to_dict(self) -> dict[str, Any]:
        """transformers' keys, and under ``rote`` what it has no key for, where that differs."""
        out: dict[str, Any] = {
            "audio_frame_step": self.token_seconds / 4,
            "max_position_embeddings": self.theta,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.theta,
                "partial_rotary_factor": self.partial,
            },
        }
        usual = RoteConfig(max_position=self.theta)
        names = ("kind", "max_position", "window_factor", "time_factor")
        ours = {n: getattr(self, n) for n in names if getattr(self, n) != getattr(usual, n)}
        return {**out, "rote": ours} if ours else out


def model_of_run(folder: Path) -> Path | None:
    """The model folder that a training run has made within its own, where ``folder`` is one of a run."""
    made = folder / "model"
    return made if (made / "config.json").is_file() else None


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""Of a LoRA adapter's folder, as PEFT names them."""


def adapter_of_run(folder: Path) -> Path:
    """Where a training run keeps its adapters within its own folder."""
    return folder / "adapter"


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes a model's shapes and arithmetic.

    Attributes:
        model_type: ``musicflamingo`` (AF-Next, Music Flamingo) or ``audioflamingo3``.
        audio, text, rote: the parts.
        audio_token_id: the ``<sound>`` placeholder, one per audio token.
        audio_bos_token_id, audio_eos_token_id: around a recording; None in ``audioflamingo3``.
        projector_bias: whether the adaptor's layers have a bias.
        dtype: of the weights on disk, if the file says.
    """

    model_type: str = "musicflamingo"
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    rote: RoteConfig = field(default_factory=RoteConfig)
    audio_token_id: int = 151669
    audio_bos_token_id: int | None = 151670
    audio_eos_token_id: int | None = 151671
    projector_bias: bool = True
    dtype: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Read transformers' layout.

        Raises:
            CheckpointError: naming the key that is missing, mistyped or out of bounds.
        """
        if not isinstance(data, Mapping):
            raise CheckpointError("config.json: must hold a JSON object")
        r = _Reader(data, "")
        model_type = r.choice("model_type", "", MODEL_TYPES)
        r.choice("projector_hidden_act", "gelu", ("gelu",))
        flamingo3 = model_type == "audioflamingo3"
        text = TextConfig._read(r.section("text_config"))
        last = text.vocab_size - 1

        def marker(key: str, default: int) -> int | None:
            return None if flamingo3 else r.integer(key, default, 0, last)

        dtype = data.get("dtype", data.get("torch_dtype"))
        audio = AudioConfig._read(r.section("audio_config"))
        rote = RoteConfig(kind="none") if flamingo3 else RoteConfig._read(r)
        if 2 * rote.channels(audio.hidden_size) > audio.hidden_size:
            raise r.fail("rope_parameters", "such that both axes fit the encoder's channels")
        return cls(
            model_type=model_type,
            audio=audio,
            text=text,
            rote=rote,
            audio_token_id=r.integer("audio_token_id", 151669, 0, last),
            audio_bos_token_id=marker("audio_bos_token_id", 151670),
            audio_eos_token_id=marker("audio_eos_token_id", 151671),
            projector_bias=r.boolean("projector_bias", True),
            dtype=dtype if dtype in DTYPES else None,
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read ``config.json`` of a model folder."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            made = model_of_run(Path(folder))
            what = f"its model is {made}" if made else "is this a model folder?"
            raise CheckpointError(f"{folder}: no config.json here; {what}")
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise CheckpointError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not JSON ({error})") from None
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """transformers' layout, as ``config.json`` holds it."""
        markers = {
            "audio_bos_token_id": self.audio_bos_token_id,
            "audio_eos_token_id": self.audio_eos_token_id,
        }
        return {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "audio_config": self.audio.to_dict(),
            "text_config": self.text.to_dict(),
            "audio_token_id": self.audio_token_id,
            **({} if self.model_type == "audioflamingo3" else {**markers, **self.rote.to_dict()}),
            "projector_hidden_act": "gelu",
            "projector_bias": self.projector_bias,
            **({"dtype": self.dtype} if self.dtype else {}),
        }

    def with_dtype(self, dtype: str) -> ModelConfig:
        """The same geometry, with weights of ``dtype`` on disk."""
        return replace(self, dtype=dtype)
