"""Packed weights in a file: a cache beside the canonical weights, for machines that read its layout."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from . import _check as check
from .mapped_file import MappedFile
from .pack import ALIGNMENT, LAYOUT, PackedWeight

FIELDS = ("format", "n", "k", "gate_up", "activations")


def fingerprint(*tensors: Tensor) -> str:
    """A checksum of tensors' values, dtypes and shapes: which weights a packing was made from."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_packed(
    path: str | os.PathLike[str], weights: Mapping[str, PackedWeight], source: str = ""
) -> None:
    """Write packed weights as safetensors: one uint8 tensor a name, the rest as JSON in the metadata.

    The file appears whole or not at all. Bytes lie in it as kernels want them, so that it can be mapped.

    Args:
        path: where; its folder exists.
        weights: by name.
        source: ``fingerprint`` of the weights that they were made from.
    """
    path = Path(path)
    described = {
        name: {field: getattr(weight, field) for field in FIELDS}
        for name, weight in weights.items()
    }
    metadata = {"layout": LAYOUT, "source": source, "weights": json.dumps(described)}
    for name, weight in weights.items():
        check.require(
            weight.layout == LAYOUT,
            f"save_packed: {name} has layout {weight.layout!r}, this afnext writes {LAYOUT!r}",
        )
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_header({name: w.data.numel() for name, w in weights.items()}, metadata))
            for weight in weights.values():
                file.write(weight.data.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _header(sizes: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
    """What stands before the bytes; unlike safetensors' own it ends at a multiple of ``ALIGNMENT``."""
    described: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, size in sizes.items():
        described[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(described).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def load_packed(path: str | os.PathLike[str], source: str | None = None) -> dict[str, PackedWeight]:
    """Map what ``save_packed`` wrote: bytes are read from disk when a product needs them.

    Args:
        path: the file.
        source: the ``fingerprint`` that the weights must have been made from; None takes any.

    Raises:
        ValueError: the file holds no packed weights, or those of another layout or source.
    """
    from safetensors import SafetensorError

    path = Path(path)
    try:
        file = MappedFile(path)
        metadata = file.metadata
        check.require(
            {"layout", "source", "weights"} <= set(metadata),
            f"load_packed: {path} holds no packed weights",
        )
        check.require(
            metadata["layout"] == LAYOUT,
            f"load_packed: {path} has layout {metadata['layout']!r}, this afnext reads {LAYOUT!r}",
        )
        check.require(
            source is None or metadata["source"] == source,
            f"load_packed: {path} was packed from other weights ({metadata['source']!r}, "
            f"not {source!r})",
        )
        described = json.loads(metadata["weights"])
        return {
            name: PackedWeight.from_bytes(data, **described[name])
            for name, data in file.tensors(described).items()
        }
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"load_packed: {path} is not readable ({error})") from None
