"""Files on disk, or wherever fsspec reaches: HTTP servers, object stores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from afnext.cache import cache_root
from afnext.errors import AfnextError

Where = str | Path


def is_remote(where: Where) -> bool:
    """Whether it is an address (``https://..``, ``s3://..``) and no path."""
    return isinstance(where, str) and "://" in where


def join(folder: Where, name: str) -> Where:
    """A file of a folder."""
    return f"{str(folder).rstrip('/')}/{name}" if is_remote(folder) else Path(folder) / name


def local(folder: Where, name: str) -> Path:
    """A file of a folder as a path; one that is elsewhere is fetched and kept (``cache_root``), and fetched
    again where it has changed.

    Raises:
        AfnextError: it cannot be fetched.
    """
    if not is_remote(folder):
        return Path(folder) / name
    import fsspec

    root, url = cache_root(), str(join(folder, name))
    if root is None:
        raise AfnextError(f"{url}: needs a cache on disk, and AFNEXT_CACHE is set to nothing")
    kept = {"cache_storage": str(root / "files"), "check_files": True}
    try:
        return Path(fsspec.open_local(f"filecache::{url}", filecache=kept))
    except (OSError, ValueError, ImportError) as error:
        raise AfnextError(f"cannot fetch {url}: {error}") from None


class File:
    """A file, opened for reading parts of it by any number of threads, also of processes forked later.

    Raises:
        AfnextError: it is not there, cannot be opened, or the package for its kind of address is missing.
    """

    def __init__(self, where: Where) -> None:
        self.where = where
        self._file = -1
        try:
            if is_remote(where):
                self._connect()
                self.size = int(self._system.size(self._path))
            else:
                self._file = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
                self.size = os.fstat(self._file).st_size
        except (OSError, ValueError, ImportError, TypeError) as error:
            why = getattr(error, "strerror", None) or error
            raise AfnextError(f"cannot open {where}: {why}") from None

    def _connect(self) -> None:
        from fsspec.core import url_to_fs

        self._process = os.getpid()
        self._system, self._path = url_to_fs(str(self.where))

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """So many bytes from ``offset`` on, less where the file ends; by default all of them.

        Raises:
            AfnextError: they cannot be read.
        """
        size = self.size - offset if size is None else size
        try:
            if is_remote(self.where):
                if self._process != os.getpid():  # connections do not outlive a fork
                    self._connect()
                content: Any = self._system.cat_file(self._path, start=offset, end=offset + size)
                return bytes(content)
            return os.pread(self._file, size, offset)
        except Exception as error:  # clients of servers have their own kinds
            raise AfnextError(f"cannot read {self.where}: {error}") from None

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()
