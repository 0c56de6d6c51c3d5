"""Encoded audio on disk, for the next time somebody asks about yesterday's recording."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

LAYOUT = "1"
MAX_BYTES = 4 << 30


class AudioStore:
    """A folder with one file for each encoded window, the least recently used leaving first.

    Files appear whole or not at all, and say whose they are and what they must add up to: one that is
    damaged is a warning, and the window is encoded again. A folder that cannot be written to is a warning,
    once. Several processes may share it.

    Args:
        folder: made where it is missing.
        model: what tells weights, dtype and quantization apart.
        max_bytes: most that it holds.

    Raises:
        ValueError: ``max_bytes`` is negative.
    """

    def __init__(self, folder: str | Path, model: str, max_bytes: int = MAX_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: must not be negative, got {max_bytes}")
        self.folder, self.max_bytes = Path(folder).expanduser(), max_bytes
        self._model = hashlib.blake2b(f"{LAYOUT} {model}".encode(), digest_size=16).hexdigest()
        self._writable = True
        self._held: int | None = None

    def path(self, key: bytes) -> Path:
        """Where a window's file is."""
        return self.folder / f"{self._model}-{key.hex()}.safetensors"

    def load(self, key: bytes) -> Tensor | None:
        """A window's tokens ``[n, hidden]``, or None."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tokens, told = file.get_tensor("tokens").clone(), file.metadata() or {}
            if told.get("sum") != _sum(tokens):
                raise ValueError("its contents are not what was written")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, SafetensorError) as error:
            warnings.warn(f"{path} is damaged and made anew: {error}", stacklevel=2)
            path.unlink(missing_ok=True)
            return None
        return tokens

    def save(self, key: bytes, tokens: Tensor) -> None:
        """Keep a window's tokens, and drop others for them."""
        if not self._writable or tokens.nbytes > self.max_bytes:
            return
        tokens = tokens.detach().cpu().contiguous()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(suffix=".part", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(save({"tokens": tokens}, {"sum": _sum(tokens)}))
                Path(name).replace(self.path(key))
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            self._make_room(self.path(key).stat().st_size)
        except OSError as error:
            self._writable = False
            warnings.warn(f"encoded audio is not kept: {error}", stacklevel=2)

    def _make_room(self, added: int) -> None:
        """Look at the folder where it may be full; parts that somebody left behind go first."""
        if self._held is not None and self._held + added <= self.max_bytes:
            self._held += added
            return
        files = []
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.part")]:
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was here
                continue
            files.append((path.suffix != ".part", status.st_mtime_ns, status.st_size, path))
        self._held = sum(size for _, _, size, _ in files)
        for _, _, size, path in sorted(files):
            if self._held <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            self._held -= size


def _sum(tokens: Tensor) -> str:
    data = tokens.contiguous().view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).hexdigest()
