"""What was computed of a recording, on disk, for the next time somebody asks about it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

LAYOUT = "2"
MAX_BYTES = 16 << 30
NAME = "tensor"
ABANDONED = 3600.0  # seconds after which nobody writes to a part any more


def require_folder(folder: str | Path) -> Path:
    """``folder`` as a path, which may not be there yet.

    Raises:
        ValueError: it is a file.
    """
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"disk_cache: {path} is a file; give a folder")
    return path


class DiskCache:
    """A folder with one file for each encoded window and each page, the least recently used leaving first.

    Files appear whole or not at all, and say whose they are and what they must add up to: one that is
    damaged is a warning, and is deleted and computed again. A folder that cannot be written to, or is
    full, is a warning, once. Several processes may share it, and threads.

    Args:
        folder: made where it is missing.
        model: what tells weights, dtype and quantization apart.
        max_bytes: most that it holds.

    Attributes:
        hits, misses: files that were found, or not.

    Raises:
        ValueError: ``max_bytes`` is negative, or ``folder`` is a file.
    """

    def __init__(self, folder: str | Path, model: str, max_bytes: int = MAX_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: must not be negative, got {max_bytes}")
        self.folder, self.max_bytes = require_folder(folder), max_bytes
        self._model = hashlib.blake2b(f"{LAYOUT} {model}".encode(), digest_size=16).hexdigest()
        self.writable = True
        self._held: int | None = None
        self._saving = Lock()
        self.hits = self.misses = 0

    def path(self, key: bytes) -> Path:
        """Where the file of ``key`` is."""
        return self.folder / f"{self._model}-{key.hex()}.safetensors"

    def has(self, key: bytes, used: int | None = None) -> bool:
        """Whether there is such a file; if so, it was used now, or at ``used``."""
        path = self.path(key)
        if not path.exists():
            return False
        _use(path, used)
        return True

    def load(self, key: bytes, used: int | None = None, nbytes: int | None = None) -> Tensor | None:
        """What was saved, or None; ``used`` as in ``save``. What has not ``nbytes`` is damaged."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensor, told = file.get_tensor(NAME).clone(), file.metadata() or {}
            if told.get("sum") != _sum(tensor) or nbytes not in (None, tensor.nbytes):
                raise ValueError("its contents are not what was written")
        except FileNotFoundError:
            self.misses += 1
            return None
        except (OSError, ValueError, SafetensorError) as error:
            warnings.warn(f"{path} is damaged and made anew: {error}", stacklevel=2)
            with suppress(OSError):
                path.unlink()
            self.misses += 1
            return None
        _use(path, used)
        self.hits += 1
        return tensor

    def save(self, key: bytes, tensor: Tensor, used: int | None = None) -> None:
        """Keep ``tensor``, and drop others for it.

        ``used``: when it counts as used, in ns since the epoch; by default now.
        """
        if not self.writable or tensor.nbytes > self.max_bytes:
            return
        tensor = tensor.detach().cpu().contiguous()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(suffix=".part", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    size = file.write(save({NAME: tensor}, {"sum": _sum(tensor)}))
                _use(Path(name), used)
                Path(name).replace(self.path(key))
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            with self._saving:
                self._make_room(size)
        except FileNotFoundError:  # somebody cleared the folder: this one is not kept
            pass
        except OSError as error:
            self.writable = False
            warnings.warn(f"nothing more is kept on disk: {error}", stacklevel=2)

    def _make_room(self, added: int) -> None:
        """Look at the folder where it may be full; parts that somebody left behind go first, and others stay:
        they are being written.
        """
        if self._held is not None and self._held + added <= self.max_bytes:
            self._held += added
            return
        files = []
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.part")]:
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was here
                continue
            whole = path.suffix != ".part"
            if whole or time.time() - status.st_mtime > ABANDONED:
                files.append((whole, status.st_mtime_ns, status.st_size, path))
        self._held = sum(size for _, _, size, _ in files)
        # A little more than must be, lest the next file looks at the whole folder again.
        aim = self.max_bytes - self.max_bytes // 16 if self._held > self.max_bytes else self._held
        for _, _, size, path in sorted(files):
            if self._held <= aim:
                break
            path.unlink(missing_ok=True)
            self._held -= size


def _use(path: Path, used: int | None) -> None:
    """Mark as used; a folder that is only read stays as it is."""
    at = time.time_ns() if used is None else used
    with suppress(OSError):
        os.utime(path, ns=(at, at))


def _sum(tensor: Tensor) -> str:
    data = tensor.contiguous().view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).hexdigest()
