"""Facts for ``afnext info``: the installation, a model, a geometry."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .hub import find_model
from .model.config import ModelConfig
from .model.info import ModelInfo
from .model.info import geometry as known_geometry


def installation() -> dict[str, Any]:
    """Versions, CPU level, threads (of the kernels, and of torch's own ops), CUDA."""
    import torch

    from . import __version__
    from .ops import runtime

    return {
        "afnext": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_isa": runtime.cpu_isa(),
        "cpu_isa_detected": runtime.detected_cpu_isa(),
        "cpu_isas_compiled": runtime.compiled_cpu_isas(),
        "threads": runtime.num_threads(),
        "torch_threads": torch.get_num_threads(),
        "cuda_kernels": runtime.has_cuda(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def model(source: str | Path) -> dict[str, Any]:
    """What a model folder weighs, from its config and, where there are weights, their headers.

    ``stored_bytes`` are those of the weights' files, ``stored_formats`` those of integers in them.
    """
    from .model.checkpoint import Weights

    folder = find_model(source)
    facts = {"model": str(source), **_sizes(ModelConfig.from_folder(folder))}
    if files := list(folder.glob("*.safetensors")):
        facts["stored_bytes"] = sum(file.stat().st_size for file in files)
        with suppress(CheckpointError):  # loading says what is wrong with a file
            if formats := Weights.open(folder).formats():
                facts["stored_formats"] = formats
    return facts


def verified(source: str | Path, told: Callable[[str, float], None]) -> dict[str, Any]:
    """That the weights of a folder are those that were written, to the bit; see ``digests.verify``."""
    from .model.digests import verify

    tensors, size = verify(find_model(source), told)
    return {"model": str(source), "verified_tensors": tensors, "verified_bytes": size}


def geometry(name: str) -> dict[str, Any]:
    """What a known geometry weighs."""
    return {"geometry": name, **_sizes(known_geometry(name))}


def _sizes(config: ModelConfig) -> dict[str, Any]:
    return ModelInfo.of(config).to_dict()


def as_json(facts: dict[str, Any]) -> str:
    """One object."""
    return json.dumps(facts, ensure_ascii=False)


def as_text(facts: dict[str, Any]) -> str:
    """A line a fact."""
    width = max(len(name) for name in facts)
    return "\n".join(
        f"{name.replace('_', ' '):<{width}}  {_readable(name, value)}"
        for name, value in facts.items()
    )


def _readable(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_readable(name, v)} {k}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,} bytes" if "bytes" in name else f"{value:,}"
    return str(value)
