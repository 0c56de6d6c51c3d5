"""Packed weights of a model folder, kept on this machine's disk: quantising a large model takes a minute."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from afnext import ops
from afnext.ops import PackedWeight

LEAST_BYTES = 1 << 28  # a smaller model is packed in less time than it takes to ask the disk


def identity(files: list[Path]) -> str:
    """Tells weights apart by their files' sizes and times of change, as build systems do."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(files):
        status = file.resolve().stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns};".encode())
    return digest.hexdigest()


class PackedCache:
    """Where the packed weights of one folder lie, in one quantization of one dtype.

    Args:
        files: the folder's weights.
        quantization: names what is made of them.
        dtype: what they had when they were quantised.
        root: folder of the cache.
        least_bytes: packings smaller than this are not kept.
    """

    def __init__(
        self,
        files: list[Path],
        quantization: str,
        dtype: torch.dtype,
        root: Path,
        least_bytes: int = LEAST_BYTES,
    ) -> None:
        self.source = identity(files)
        format = f"{quantization}-{str(dtype).removeprefix('torch.')}"
        self.path = root / "packed" / f"{self.source}-{format}.safetensors"
        self.least_bytes = least_bytes

    def load(self) -> dict[str, PackedWeight]:
        """What was saved; nothing where there is none, or where another version wrote it."""
        if not self.path.is_file():
            return {}
        try:
            return ops.load_packed(self.path, self.source)
        except (ValueError, OSError) as error:
            warnings.warn(f"packed weights are made anew: {error}", stacklevel=2)
            return {}

    def save(self, weights: Mapping[str, PackedWeight]) -> None:
        """Keep them, where there is room; a cache that cannot be written is a warning."""
        size = sum(w.nbytes for w in weights.values())
        if size < self.least_bytes:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.path.parent).free < 2 * size:
                raise OSError(f"{self.path.parent} has too little room for {size / 1e9:.1f} GB")
            ops.save_packed(self.path, weights, self.source)
        except OSError as error:
            warnings.warn(f"packed weights are not kept: {error}", stacklevel=2)
