"""Open a path, bytes or a file object as one seekable stream that never raises inside a decoder."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import AudioError

# What a pipe may hold: 30 minutes of 48 kHz float32 in 8 channels is 2.8 GB.
MAX_PIPE_BYTES = 4 << 30
_COPY_BYTES = 1 << 20
_NAME_LENGTH = 200


class ByteStream:
    """Bytes ``prefix + file[start:]``, readable and seekable.

    Decoders call it from C, where an exception would be printed and lost: it is kept in ``failure``,
    the stream acts as if it ended there, and ``check`` raises it afterwards.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self.name = name
        self.start = 0
        self.prefix = b""
        self.failure: BaseException | None = None
        self._position = 0
        self.size = file.seek(0, io.SEEK_END)

    def rebase(self, start: int, prefix: bytes = b"") -> None:
        """Begin at byte ``start`` of the file, behind ``prefix``."""
        self.size += self.start - start + len(prefix) - len(self.prefix)
        self.start, self.prefix, self._position = start, prefix, 0

    def read(self, count: int = -1) -> bytes:
        if count < 0:
            count = max(0, self.size - self._position)
        out = self.prefix[self._position : self._position + count]
        try:
            if len(out) < count:
                self._file.seek(self.start + self._position + len(out) - len(self.prefix))
            while len(out) < count:
                piece = self._file.read(count - len(out))
                if not piece:
                    break
                out += piece
            if len(out) > count:
                raise OSError("more bytes returned than were asked for")
        except BaseException as error:
            self.failure = self.failure or error
            out = b""
        self._position += len(out)
        return out

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def check(self) -> None:
        """Raise what reading ran into: an ``AudioError`` for an I/O error, else the exception."""
        if self.failure is None:
            return
        if isinstance(self.failure, Exception):
            reason = getattr(self.failure, "strerror", None) or type(self.failure).__name__
            raise AudioError(f"{self.name}: cannot be read: {reason}") from self.failure
        raise self.failure


@contextmanager
def open_stream(source: object) -> Iterator[ByteStream]:
    """Open ``source`` and close what was opened; a file object of the caller's stays open.

    File objects are read from their beginning; pipes are first copied to an unnamed temporary file.
    """
    with ExitStack() as stack:
        file, name = _open(source, stack)
        try:
            if not _seekable(file):
                file = _spool(file, name, stack)
            stream = ByteStream(file, name)
        except AudioError:
            raise
        except (OSError, ValueError) as error:
            raise _unreadable(name, error) from error
        if stream.size == 0:
            raise AudioError(f"{name}: is empty (0 bytes)")
        yield stream


def _open(source: object, stack: ExitStack) -> tuple[BinaryIO, str]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), "audio bytes"
    if isinstance(source, (str, os.PathLike)):
        return stack.enter_context(_open_path(os.fspath(source))), _printable(os.fspath(source))
    if callable(getattr(source, "read", None)):
        file = cast(BinaryIO, source)
        if isinstance(source, io.TextIOBase):
            raise AudioError("audio: the file object is in text mode; open it with mode 'rb'")
        name = getattr(source, "name", None)
        return file, _printable(name) if isinstance(name, str) else "audio file object"
    raise AudioError(
        "audio: need a path, bytes, a binary file object or a NumPy or torch array, got "
        f"{type(source).__name__}"
    )


def _open_path(path: str | bytes) -> BinaryIO:
    name = _printable(path)
    try:
        mode = Path(os.fsdecode(path)).stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{name}: is a folder, not an audio file")
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise AudioError(f"{name}: is a device, not an audio file")
        return Path(os.fsdecode(path)).open("rb")
    except AudioError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> AudioError:
    if isinstance(error, FileNotFoundError):
        hint = " (only local files are read, not URLs)" if "://" in name else ""
        return AudioError(f"{name}: no such file{hint}")
    if isinstance(error, PermissionError):
        return AudioError(f"{name}: permission denied")
    return AudioError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or 'bad path'}")


def _seekable(file: BinaryIO) -> bool:
    if not hasattr(file, "seek") or not hasattr(file, "tell"):
        return False
    return bool(file.seekable()) if hasattr(file, "seekable") else True


def _spool(file: BinaryIO, name: str, stack: ExitStack) -> BinaryIO:
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    copied = 0
    while piece := file.read(_COPY_BYTES):
        if not isinstance(piece, bytes):
            raise AudioError(f"{name}: the file object must return bytes")
        copied += len(piece)
        if copied > MAX_PIPE_BYTES:
            raise AudioError(f"{name}: more than {MAX_PIPE_BYTES >> 30} GiB came through the pipe")
        copy.write(piece)
    return cast(BinaryIO, copy)


def _printable(path: str | bytes) -> str:
    """The name for messages: its end where it is long, no control characters."""
    text = os.fsdecode(path)
    text = text if len(text) <= _NAME_LENGTH else "..." + text[-_NAME_LENGTH:]
    return text if text.isprintable() else repr(text)
