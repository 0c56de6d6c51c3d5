"""Where training conversations come from: folders of shards and files of published records.

A source's files are read once, for an index: which records hear which recording, how long it is, how many
characters they have. Lines are parsed again when they are drawn, so that an index is all that is held; a file
that is one JSON value is held whole. A folder that :mod:`afnext.training.archive` wrote has its index on
disk, and nothing is read before it is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from afnext.audio import load, probe
from afnext.audio.windows import SAMPLE_RATE, AudioWindow, cut_windows
from afnext.errors import AfnextError, AudioError
from afnext.training.data import conversations
from afnext.training.data.conversations import Conversation, RecordError, Skipped
from afnext.training.data.entries import INDEX, Entries, Entry, Place
from afnext.training.data.shards import Shard
from afnext.training.data.store import File, Where, is_remote, join, local
from afnext.training.synthesis.labels import from_json
from afnext.training.synthesis.scenes import Scene

if TYPE_CHECKING:
    from afnext.training.data.index import Index

OPEN_SHARDS = 256


@dataclass
class Source:
    """Records in files, their recordings in shards or files.

    Attributes:
        path: a folder of ``*.conversations.jsonl``, or one file of records: JSON lines, a list as Audio
            Flamingo 3 publishes them, or Audio Flamingo 2's manifest. Of a folder with an index also the
            address (``https://..``, ``s3://..``, whatever fsspec knows).
        root: where relative paths of recordings begin; by default the folder of the records.
        broken_limit: records that cannot be read are left out, up to so many.
        skipped: what was left out.
        entries: all that can be drawn.

    Raises:
        AfnextError: there are no records, or more than ``broken_limit`` cannot be read.
    """

    path: Where
    root: Path | None = None
    broken_limit: int = 0
    skipped: Skipped = field(init=False)
    files: list[Where] = field(init=False)
    entries: Entries | Index = field(init=False)

    def __post_init__(self) -> None:
        self.skipped = Skipped(self.broken_limit)
        self._shard, self._file = lru_cache(OPEN_SHARDS)(Shard), lru_cache(OPEN_SHARDS)(File)
        self._held: dict[int, list[Conversation]] = {}
        if is_remote(self.path) or (Path(self.path) / INDEX).exists():
            from afnext.training.data.index import Index  # which needs pyarrow

            self._folder: Where = self.root or self.path
            index = Index(local(self.path, INDEX))
            self.entries, self.files = index, [join(self.path, name) for name in index.shards]
        else:
            path = Path(self.path)
            self._folder = self.root or (path if path.is_dir() else path.parent)
            files = sorted(path.glob("*.conversations.jsonl")) if path.is_dir() else [path]
            self.files = [*files]
            self.entries = Entries(e for n, file in enumerate(files) for e in self._index(n, file))
        if not self.entries:
            raise AfnextError(f"no conversations at {self.path}")

    def _index(self, number: int, file: Path) -> Iterator[Entry]:
        alone: dict[str, list[tuple[Place, float, int]]] = {}
        for place, item in self._records(number, file):
            try:
                seconds = self._seconds(item)
            except RecordError as error:
                self.skipped.add(error)
                continue
            characters = sum(len(turn.text) for turn in item.turns)
            if len(item.sounds) == 1:
                alone.setdefault(item.sounds[0], []).append((place, seconds, characters))
            else:
                yield Entry((place,), seconds, (characters,))
        for group in alone.values():
            places, seconds_of, characters_of = zip(*group, strict=True)
            yield Entry(places, max(seconds_of), characters_of)

    def _records(self, number: int, file: Path) -> Iterator[tuple[Place, Conversation]]:
        if file.suffix != ".jsonl":
            held = self._held[number] = list(conversations.read(file, self.skipped))
            yield from ((Place(number, i, 0), item) for i, item in enumerate(held))
            return
        for offset, line in _lines(file):
            try:
                yield Place(number, offset, len(line)), _conversation(line, file, offset)
            except RecordError as error:
                self.skipped.add(error)

    def _seconds(self, item: Conversation) -> float:
        """Of all its recordings, measured where the record does not say."""
        if item.duration is not None or not item.sounds:
            return item.duration or 0.0
        total = 0.0
        for path in item.sounds:
            try:
                stated = probe(Path(self._folder) / path).duration
            except AudioError as error:
                why = "a recording cannot be read"
                raise RecordError(why, item.where, error.why) from None
            if stated is None:
                raise RecordError(
                    "no duration is given, nor in a recording's header", item.where, path
                )
            total += stated
        return total

    def where(self, place: Place) -> str:
        """A record's file and its place there."""
        if not place.size:
            return self._held[place.file][place.offset].where
        return f"{str(self.files[place.file]).rpartition('/')[2]}, byte {place.offset}"

    def conversations(self, entry: Entry, chosen: Sequence[int]) -> list[Conversation]:
        """Some records of an entry."""
        found = []
        for place in (entry.records[i] for i in chosen):
            if not place.size:
                found.append(self._held[place.file][place.offset])
                continue
            where = self.files[place.file]
            line = self._file(where).read(place.offset, place.size)
            found.append(_conversation(line, where, place.offset))
        return found

    def labels(self, path: str) -> Scene | None:
        """What is to be heard in a recording; None for one that is not in a shard, or has no labels there.

        Raises:
            AfnextError: the labels are broken.
        """
        shard, inside, name = path.rpartition(".tar/")
        if not inside:
            return None
        found = self._shard(join(self._folder, f"{shard}.tar")).labels(name.rpartition(".")[0])
        return from_json(found, path) if found else None

    def windows(self, path: str) -> list[AudioWindow]:
        """A recording's windows of 30 s.

        Raises:
            AudioError: it cannot be read.
        """
        shard, inside, name = path.rpartition(".tar/")
        if not inside:
            return load(Path(self._folder) / path)
        samples, rate = self._shard(join(self._folder, f"{shard}.tar")).audio(name)
        if rate != SAMPLE_RATE:
            raise AudioError(
                f"{join(self._folder, path)} has {rate} Hz; recordings in shards need {SAMPLE_RATE}"
            )
        return list(cut_windows([samples]))


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with file.open("rb") as stream:
            offset = 0
            for line in stream:
                if line.strip():
                    yield offset, line
                offset += len(line)
    except OSError as error:
        raise AfnextError(f"cannot read conversations from {file}: {error.strerror}") from None


def _conversation(line: bytes, file: Where, offset: int) -> Conversation:
    where = f"{str(file).rpartition('/')[2]}, byte {offset}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RecordError("a line is no JSON", where, str(error)) from None
    return conversations.conversation(record, where)
