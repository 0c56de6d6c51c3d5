"""The file of answers: a line of JSON a recording, appended whole, safe against a kill at any moment."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from afnext.errors import AfnextError

_START = b'{"file": '
# Ends of lines to some readers, though not to JSON.
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "\u0085\u2028\u2029"}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that tell ``settings`` (values for JSON) from others."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Results:
    """Answers on disk; opening it takes what is there as done.

    A line is an object that begins with ``file`` and ends with ``settings``, the fingerprint of what
    the answers were made with, so that a file needs no header and no companion: cut lines out, or join
    two files, and it is still one. Lines are separated by ``\\n`` alone. A last line that was not
    written to its end, as a kill leaves it, is cut off.

    Args:
        path: made where it is missing; its folder must exist.
        settings: a fingerprint; lines made with another one are refused.
        retry_failed: drop lines that hold an ``error``, so that these recordings are not done.

    Attributes:
        done: recordings that have a line.
        failed: of these, those whose line holds an ``error``.

    Raises:
        AfnextError: the file cannot be written, another process writes it, it holds lines that are
            none of ours, or answers made with other settings.
    """

    def __init__(self, path: str | Path, settings: str, *, retry_failed: bool = False) -> None:
        self.path = Path(path)
        self.settings = settings
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self._file = _locked(self.path)
        try:
            lines = self._read()
            if retry_failed and self.failed:
                self._keep([line for line in lines if "error" not in json.loads(line)])
        except BaseException:
            self.close()
            raise

    def add(self, file: str, answer: Mapping[str, Any]) -> None:
        """Append the line of one recording; when this returns, a kill cannot take it back.

        Raises:
            AfnextError: the disk is full, say; the file then ends with the line before.
        """
        line = _encoded({"file": file, **answer, "settings": self.settings})
        try:
            self._append(line)
        except OSError as error:
            raise AfnextError(
                f"{self.path}: cannot be written ({error.strerror}); the {len(self.done)} answers in it "
                "are whole, and the same command goes on from there"
            ) from None
        self.done.add(file)
        if "error" in answer:
            self.failed.add(file)

    def close(self) -> None:
        """Let others write; calling it again does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        whole = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except BaseException:  # Ctrl-C, too, which may come when the line is already whole
            if os.fstat(self._file).st_size < whole + len(line):
                os.ftruncate(self._file, whole)
            raise

    def _read(self) -> list[bytes]:
        """Learn what is done, and cut a last line without an end."""
        with self.path.open("rb") as file:
            *lines, rest = file.read().split(b"\n")
        for number, line in enumerate(lines, 1):
            self._learn(number, line)
        if rest:
            if rest[: len(_START)] != _START[: len(rest)]:
                raise self._foreign(len(lines) + 1)
            os.ftruncate(self._file, sum(len(line) + 1 for line in lines))
        return lines

    def _learn(self, number: int, line: bytes) -> None:
        try:
            answer = json.loads(line)
            file, settings = answer["file"], answer["settings"]
        except (ValueError, KeyError, TypeError):
            raise self._foreign(number) from None
        if not isinstance(file, str):
            raise self._foreign(number)
        if settings != self.settings:
            raise AfnextError(
                f"{self.path}: holds answers to another question, of another model, of the same one trained "
                "otherwise, or with other options (or of an earlier afnext, which noted less): give another "
                "file, or what this one was made with"
            )
        self.done.add(file)
        if "error" in answer:
            self.failed.add(file)

    def _foreign(self, number: int) -> AfnextError:
        return AfnextError(
            f"{self.path}: line {number} is not an answer of afnext's: give another file"
        )

    def _keep(self, lines: list[bytes]) -> None:
        """Put a file with these lines alone in the place of this one, all or nothing."""
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        new.unlink(missing_ok=True)
        file = _locked(new)  # before it gets its name, so that nobody takes it from us
        try:
            with os.fdopen(os.dup(file), "wb") as stream:
                stream.writelines(line + b"\n" for line in lines)
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(self.path)
        except OSError as error:
            os.close(file)
            new.unlink(missing_ok=True)
            raise AfnextError(f"{self.path}: cannot be written ({error.strerror})") from None
        os.close(self._file)
        self._file = file
        self.done -= self.failed
        self.failed = set()


def _locked(path: Path) -> int:
    """A descriptor that appends to ``path`` and that no other process has."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise AfnextError(f"{path}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BlockingIOError:
            os.close(file)
            raise AfnextError(f"{path}: another process is writing it") from None
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(file)
            raise AfnextError(f"{path}: cannot be locked ({error.strerror})") from None
        os.close(file)  # it was replaced between opening and locking


def _encoded(answer: Mapping[str, Any]) -> bytes:
    text = json.dumps(answer, ensure_ascii=False).translate(_ESCAPED)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return json.dumps(answer).encode() + b"\n"
