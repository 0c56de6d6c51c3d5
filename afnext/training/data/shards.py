"""Recordings in shards: tar files as WebDataset has them, with an index, so that any one is read at once.

A shard ``NAME-00003.tar`` holds for each recording ``KEY.wav`` (or ``.flac``, ``.opus``: whatever
libsndfile reads) and ``KEY.json``; ``NAME-00003.index.json`` beside it holds where each begins. A recording
is named by the path ``NAME-00003.tar/KEY.wav``. Shards are written whole or not at all: one under another
name until it is complete.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from afnext.errors import AfnextError, AudioError
from afnext.training.data.store import File, Where

FORMAT = 1
ENCODINGS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
"""How recordings are encoded, by the ending of their names: libsndfile's format and subtype."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a shard: where its bytes begin, and how many."""

    offset: int
    size: int


@dataclass(frozen=True)
class Recording:
    """Samples float32 ``[S]`` mono in [-1, 1] with their rate in Hz and what lies beside them as JSON."""

    key: str
    samples: NDArray[np.float32]
    rate: int
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """``content``: a recording as :func:`encoded` gives it; ``labels``: what lies beside it as JSON."""

    key: str
    content: bytes
    labels: dict[str, Any] = field(default_factory=dict)


def encoded(samples: NDArray[np.float32], rate: int, encoding: str) -> bytes:
    """A file with samples float32 ``[S]`` in 16 bits; ``encoding``: one of ``ENCODINGS``."""
    wave = io.BytesIO()
    format, subtype = ENCODINGS[encoding]
    soundfile.write(wave, samples, rate, subtype, format=format)
    return wave.getvalue()


def write_shard(
    path: str | Path, recordings: Iterable[Recording | Encoded], encoding: str = "wav"
) -> int:
    """Write a shard and its index; gives how many recordings. ``encoding``: one of ``ENCODINGS``; also of
    those that are encoded already.

    Where that fails nothing is left behind, and a shard that was there before stays.

    Raises:
        AfnextError: the disk is full, the folder cannot be written to, or two recordings have one key.
    """
    path = Path(path)
    part, index = path.with_suffix(".tar.part"), path.with_suffix(".index.json")
    index_part = index.with_suffix(".json.part")
    entries: dict[str, list[int]] = {}
    count = 0
    try:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for recording in recordings:
                if f"{recording.key}.json" in entries:
                    raise AfnextError(f"{path} would have {recording.key} twice")
                if isinstance(recording, Recording):
                    wave = encoded(recording.samples, recording.rate, encoding)
                else:
                    wave = recording.content
                labels = json.dumps(recording.labels, ensure_ascii=False).encode()
                for name, content in ((f"{recording.key}.{encoding}", wave),
                                      (f"{recording.key}.json", labels)):  # fmt: skip
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                    entries[name] = [tar.offset - _padded(len(content)), len(content)]
                count += 1
        index_part.write_text(
            json.dumps({"format": FORMAT, "bytes": part.stat().st_size, "members": entries})
        )
        index_part.replace(index)
        part.replace(path)
    except OSError as error:
        raise AfnextError(f"cannot write the shard {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
            index_part.unlink(missing_ok=True)
    return count


def is_whole(path: str | Path) -> bool:
    """Whether a shard is there, as long as its index says."""
    try:
        Shard(path).close()
    except AfnextError:
        return False
    return True


class Shard:
    """A shard, opened for reading by any number of threads; a path, or an address (:mod:`store`)."""

    def __init__(self, path: Where) -> None:
        """Raises ``AfnextError`` where the shard or its index is missing, cut short or not of this format."""
        self.path = path
        listing = File(_index_path(path))
        try:
            index = json.loads(listing.read())
            if index["format"] != FORMAT:
                raise AfnextError(
                    f"{self.path} has an index of format {index['format']}, not {FORMAT}"
                )
            self.members = {name: Member(*entry) for name, entry in index["members"].items()}
            expected = index["bytes"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, AfnextError):
                raise
            raise AfnextError(f"{_index_path(path)} is no index of a shard: {error}") from None
        finally:
            listing.close()
        self._file = File(path)
        if self._file.size != expected:
            raise AfnextError(
                f"{self.path} is broken: {self._file.size} bytes, its index says {expected}"
            )

    def close(self) -> None:
        self._file.close()

    @property
    def keys(self) -> list[str]:
        """The recordings, in the order in which they were written."""
        return [name.removesuffix(".json") for name in self.members if name.endswith(".json")]

    def read(self, name: str) -> bytes:
        """A file's content. Raises ``AfnextError`` where there is none of this name, or less than there
        should be."""
        member = self.members.get(name)
        if member is None:
            raise AfnextError(f"{self.path} has no {name}")
        content = self._file.read(member.offset, member.size)
        if len(content) != member.size:
            raise AfnextError(f"{self.path} is broken: it ends within {name}")
        return content

    def labels(self, key: str) -> dict[str, Any]:
        """What lies beside a recording. Raises ``AfnextError`` where that is missing or no JSON."""
        try:
            labels: dict[str, Any] = json.loads(self.read(f"{key}.json"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise AfnextError(f"{self.path}/{key}.json is no JSON: {error}") from None
        return labels

    def audio(self, name: str) -> tuple[NDArray[np.float32], int]:
        """Samples float32 ``[S]`` of the first channel, and their rate.

        Raises:
            AudioError: there are none of this name, or they cannot be read.
        """
        if name not in self.members:
            raise AudioError(f"{self.path} has no {name}")
        try:
            samples, rate = soundfile.read(
                io.BytesIO(self.read(name)), dtype="float32", always_2d=True
            )
        except soundfile.LibsndfileError as error:
            raise AudioError(f"cannot read {self.path}/{name}: {error}") from None
        return np.ascontiguousarray(samples[:, 0]), rate


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _index_path(path: Where) -> Where:
    if isinstance(path, Path):
        return path.with_suffix(".index.json")
    return f"{path.removesuffix('.tar')}.index.json"
