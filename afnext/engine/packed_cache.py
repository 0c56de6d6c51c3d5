"""Packed weights of a model folder, kept on this machine's disk: quantising a large model takes a minute."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from afnext import ops
from afnext.ops import PackedWeight

LEAST_BYTES = 1 << 28  # a smaller model is packed in less time than it takes to ask the disk
MAX_BYTES = 32 << 30  # of all packings of this machine: 7B takes 5 to 8 GB
ABANDONED = 3600.0  # seconds after which nobody writes to a part any more
_OURS = re.compile(r"[0-9a-f]{32}-\w+-\w+\.safetensors(\w*\.part)?")


def identity(files: list[Path]) -> str:
    """Tells weights apart by their files' sizes and times of change, as build systems do."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(files):
        status = file.resolve().stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns};".encode())
    return digest.hexdigest()


class PackedCache:
    """Where the packed weights of one folder lie, in one quantization of one dtype.

    Those of all folders lie side by side; what was not used for longest goes when they are more than
    ``max_bytes``.

    Args:
        files: the folder's weights.
        quantization: names what is made of them.
        dtype: what they had when they were quantised.
        root: folder of the cache.
        least_bytes: packings smaller than this are not kept.
        max_bytes: of all that are kept under ``root``.
    """

    def __init__(
        self,
        files: list[Path],
        quantization: str,
        dtype: torch.dtype,
        root: Path,
        least_bytes: int = LEAST_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.source = identity(files)
        format = f"{quantization}-{str(dtype).removeprefix('torch.')}"
        self.path = root / "packed" / f"{self.source}-{format}.safetensors"
        self.least_bytes, self.max_bytes = least_bytes, max_bytes

    def load(self) -> dict[str, PackedWeight]:
        """What was saved; nothing where there is none, or where another version wrote it."""
        if not self.path.is_file():
            return {}
        try:
            found = ops.load_packed(self.path, self.source)
            with suppress(OSError):  # a folder that is only read stays as it is
                os.utime(self.path)
            return found
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
            self._make_room(size)
            if shutil.disk_usage(self.path.parent).free < 2 * size:
                raise OSError(f"{self.path.parent} has too little room for {size / 1e9:.1f} GB")
            ops.save_packed(self.path, weights, self.source)
        except OSError as error:
            warnings.warn(f"packed weights are not kept: {error}", stacklevel=2)

    def _make_room(self, size: int) -> None:
        """Drop parts that a kill left, and packings beyond the bound. Who has one mapped keeps it."""
        files = []
        for path in self.path.parent.iterdir():
            if path == self.path or not _OURS.fullmatch(path.name):
                continue
            with suppress(FileNotFoundError):  # another process was here
                status = path.stat()
                if path.suffix != ".part":
                    files.append((status.st_mtime, status.st_size, path))
                elif time.time() - status.st_mtime > ABANDONED:
                    path.unlink()
        held = size + sum(taken for _, taken, _ in files)
        for _, taken, path in sorted(files):
            if held <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            held -= taken
