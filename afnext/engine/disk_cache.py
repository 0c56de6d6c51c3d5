"""What was computed of a recording, on disk, for the next time somebody asks about it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from afnext.ops.mapped_file import MappedFile

LAYOUT = "2"
MAX_BYTES = 16 << 30
NAME = "tensor"
ABANDONED = 3600.0  # seconds after which nobody writes to a part any more
PAUSE = 300.0  # seconds until a folder is tried again that could not be written to
# Names that are ours. Others in the folder, be they weights or downloads, are somebody else's.
_SHARD = re.compile(r"[0-9a-f]{2}")
_WHOLE = re.compile(r"[0-9a-f]{32}-[0-9a-f]+\.safetensors")
_PART = re.compile(r"afnext-[0-9a-f]{16}\.part")


def require_folder(folder: str | Path) -> Path:
    """``folder`` as an absolute path, which may not be there yet.

    Raises:
        ValueError: it is a file.
    """
    path = Path(folder).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(f"disk_cache: {path} is a file; give a folder")
    return path


class DiskCache:
    """A folder with one file for each encoded window and each page, the least recently used leaving first.

    Files lie in 256 subfolders, ``3f/<model>-<key>.safetensors``; files of other names are never touched
    nor counted. What earlier versions of afnext left in the folder itself is not found any more, but
    counted, and leaves as the rest does.

    Files appear whole or not at all, and say whose they are and what they must add up to: one that is
    damaged is a warning, and is deleted and computed again. A folder that cannot be written to, or is
    full, is a warning, and is tried again after some minutes; a file that cannot be read for want of
    descriptors, say, is a warning and stays. Several processes may share it, and threads.

    Args:
        folder: made where it is missing; where the process goes afterwards changes nothing.
        model: what tells weights, dtype and quantization apart.
        max_bytes: most that it holds.

    Attributes:
        hits, misses: files that were found, or not.
        nbytes: held as far as is known: what others add is counted when the folder is looked at again, and
            nothing is known before the first file is written.
        evictions: files that had to leave, by this process.

    Raises:
        ValueError: ``max_bytes`` is negative, or ``folder`` is a file.
    """

    def __init__(self, folder: str | Path, model: str, max_bytes: int = MAX_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: must not be negative, got {max_bytes}")
        self.folder, self.max_bytes = require_folder(folder), max_bytes
        self._model = hashlib.blake2b(f"{LAYOUT} {model}".encode(), digest_size=16).hexdigest()
        self._paused = -PAUSE  # when nothing could be written last
        self._held: int | None = None
        self._saving = Lock()
        self.hits = self.misses = self.evictions = 0

    @property
    def writable(self) -> bool:
        """Whether files are written now."""
        return time.monotonic() - self._paused >= PAUSE

    @property
    def nbytes(self) -> int:
        return self._held or 0

    def path(self, key: bytes) -> Path:
        """Where the file of ``key`` is."""
        name = key.hex()
        return self.folder / name[:2] / f"{self._model}-{name}.safetensors"

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
            path.open("rb").close()  # safetensors says of all that fails here that there is no file
            file = MappedFile(path)
            tensor = file.tensors([NAME])[NAME].clone()
            if file.metadata.get("sum") != _sum(tensor) or nbytes not in (None, tensor.nbytes):
                raise ValueError("its contents are not what was written")
        except FileNotFoundError:
            self.misses += 1
            return None
        except (ValueError, SafetensorError) as error:
            warnings.warn(f"{path} is damaged and made anew: {error}", stacklevel=2)
            with suppress(OSError):
                path.unlink()
            self.misses += 1
            return None
        except OSError as error:
            why = error.strerror or error
            warnings.warn(f"{self.folder}: what is kept cannot be read: {why}", stacklevel=2)
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
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.parent / f"afnext-{secrets.token_hex(8)}.part"
            try:
                with part.open("xb") as file:
                    size = file.write(save({NAME: tensor}, {"sum": _sum(tensor)}))
                _use(part, used)
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            with self._saving:
                self._make_room(size)
        except FileNotFoundError:  # somebody cleared the folder: this one is not kept
            pass
        except OSError as error:
            self._paused = time.monotonic()
            warnings.warn(
                f"nothing is kept on disk for {PAUSE / 60:.0f} minutes: {error}", stacklevel=2
            )

    def _make_room(self, added: int) -> None:
        """Look at the folder where it may be full; parts that somebody left behind go first, and others stay:
        they are being written.
        """
        if self._held is not None and self._held + added <= self.max_bytes:
            self._held += added
            return
        files = []
        for entry in _entries(self.folder):
            whole = _WHOLE.fullmatch(entry.name) is not None
            if not whole and not _PART.fullmatch(entry.name):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # another process was here
                continue
            if whole or time.time() - status.st_mtime > ABANDONED:
                files.append((whole, status.st_mtime_ns, status.st_size, entry.path))
        held = sum(size for _, _, size, _ in files)
        # A little more than must be, lest the next file looks at the whole folder again.
        aim = self.max_bytes - self.max_bytes // 16 if held > self.max_bytes else held
        for _, _, size, path in sorted(files):
            if held <= aim:
                break
            Path(path).unlink(missing_ok=True)
            held -= size
            self.evictions += 1
        self._held = held


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in the cache's subfolders, and in the folder itself, where it lay once."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _SHARD.fullmatch(entry.name):
                yield entry
                continue
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(entry.path) as inner:
                yield from inner


def _use(path: Path, used: int | None) -> None:
    """Mark as used; a folder that is only read stays as it is."""
    at = time.time_ns() if used is None else used
    with suppress(OSError):
        os.utime(path, ns=(at, at))


def _sum(tensor: Tensor) -> str:
    data = tensor.contiguous().view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).hexdigest()
