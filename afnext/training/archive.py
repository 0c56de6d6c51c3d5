"""``python -m afnext.training.archive RECORDS.json .. FOLDER``: records and their recordings as one training
set in shards, where single files and an index in memory no longer do.

Each recording is kept once, however many records hear it: 16 kHz mono, in ``audio-00000.tar``, ..
(:mod:`afnext.training.data.shards`; WebDataset's tools read them). Records lie in
``records-00000.conversations.jsonl``, .., and ``index.arrow`` lists them (:mod:`afnext.training.data.index`).
The index is written last: without it a folder is not finished, and the same call begins anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from afnext.audio import MAX_SECONDS, load
from afnext.audio.windows import SAMPLE_RATE
from afnext.errors import AfnextError, AudioError
from afnext.training.data import conversations
from afnext.training.data.conversations import Conversation, RecordError, Skipped, Sound, Turn
from afnext.training.data.entries import INDEX
from afnext.training.data.index import SCHEMA, write_index
from afnext.training.data.shards import ENCODINGS, Recording, write_shard

SHARD_SECONDS = 8 * 3600.0  # of audio: FLAC is then about 0.5 GB, Opus 0.1 GB
SHARD_RECORDS = 1_000_000


@dataclass(frozen=True)
class Archived:
    """What was written: ``records`` and the ``recordings`` that they hear, ``seconds`` of them, and what was
    left out.
    """

    records: int
    recordings: int
    seconds: float
    skipped: Skipped


@dataclass(frozen=True, slots=True)
class _Kept:
    path: str  # into a shard
    seconds: float


def archive(
    files: Sequence[str | Path],
    folder: str | Path,
    *,
    root: str | Path | None = None,
    encoding: str = "flac",
    shard_seconds: float = SHARD_SECONDS,
    most_skipped: float = 0.01,
    told: Callable[[int, int], None] = lambda done, recordings: None,
) -> Archived:
    """Write the training set.

    Args:
        files: of records, as :mod:`afnext.training.data.conversations` reads them; a file is a source.
        folder: made where it is missing; must hold no finished set.
        root: where relative paths of recordings begin; by default the folder of their file.
        encoding: of the recordings: "flac" (no loss beyond 16 bits), "opus" (a quarter of that), "wav".
        shard_seconds: of audio in a shard, about.
        most_skipped: share of the records that may be left out because they, or recordings that they hear,
            cannot be read. Beyond it the call ends.
        told: how many recordings are done, of how many.

    Raises:
        AfnextError: too much is broken, the folder holds a set, or the disk is full.
        ValueError: an argument is out of range.
    """
    if encoding not in ENCODINGS:
        raise ValueError(
            f"archive: encoding must be one of {', '.join(ENCODINGS)}, got {encoding!r}"
        )
    if not 0 <= most_skipped <= 1:
        raise ValueError(f"archive: most_skipped must be 0 to 1, got {most_skipped!r}")
    if not shard_seconds > 0:
        raise ValueError(f"archive: shard_seconds must be above 0, got {shard_seconds!r}")
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise AfnextError(f"{folder} holds a training set: give another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in chain(folder.glob("audio-*"), folder.glob("records-*")):
            old.unlink()  # of a call that did not end
    except OSError as error:
        raise AfnextError(f"{folder}: cannot be written ({error.strerror})") from None

    skipped = Skipped()
    paths: dict[Path, None] = {}
    seen = 0
    for file, _, item in _records(files, skipped):
        seen += 1
        paths.update(dict.fromkeys(_heard(item, file, root)))
    _check(skipped, seen, most_skipped)
    broken: dict[Path, str] = {}
    kept = _write_audio(folder, list(paths), encoding, shard_seconds, broken, told)

    def readable() -> Iterator[tuple[int, Conversation, float]]:
        """Records whose recordings are in shards, with their seconds and the number of their file."""
        counted = Skipped()  # what _records counts again
        for file, number, item in _records(files, counted):
            sounds = list(_heard(item, file, root))
            if bad := next((path for path in sounds if path in broken), None):
                why = "a recording cannot be read"
                skipped.add(RecordError(why, f"{file.name}, {item.id}", broken[bad]))
                continue
            seconds = sum(kept[path].seconds for path in sounds)
            places = iter(kept[path].path for path in sounds)
            yield number, _moved(item, places, seconds), seconds

    rows, parts = _write_records(folder, readable())
    count = rows.num_rows
    _check(skipped, seen, most_skipped, count)
    names = [part.stem for part in parts]
    for part, name in zip(parts, names, strict=True):
        part.replace(folder / name)
    write_index(folder, _in_order(rows), names, [str(file) for file in files])
    return Archived(count, len(kept), sum(item.seconds for item in kept.values()), skipped)


def _records(
    files: Iterable[str | Path], skipped: Skipped
) -> Iterator[tuple[Path, int, Conversation]]:
    for number, file in enumerate(map(Path, files)):
        for item in conversations.read(file, skipped):
            yield file, number, item


def _heard(item: Conversation, file: Path, root: str | Path | None) -> Iterator[Path]:
    folder = file.parent if root is None else Path(root)
    return (folder / path for path in item.sounds)


def _check(skipped: Skipped, seen: int, most: float, written: int | None = None) -> None:
    count = skipped.counts.total()
    whole = seen + count if written is None else written + count
    if count > most * whole:
        raise AfnextError(
            f"{count} of {whole} records cannot be used, more than {most:.1%} of them "
            f"(most_skipped):\n{skipped}"
        )


def _write_audio(
    folder: Path,
    paths: Sequence[Path],
    encoding: str,
    shard_seconds: float,
    broken: dict[Path, str],
    told: Callable[[int, int], None],
) -> dict[Path, _Kept]:
    """Recordings in shards; those that cannot be read are in ``broken``, with why."""
    kept: dict[Path, _Kept] = {}
    waiting = iter(enumerate(paths))
    number, more = 0, True

    def shard(name: str) -> Iterator[Recording]:
        nonlocal more
        seconds = 0.0
        while seconds < shard_seconds:
            index, path = next(waiting, (-1, None))
            if path is None:
                more = False
                return
            told(index, len(paths))
            try:
                windows = load(path, max_seconds=MAX_SECONDS)
            except AudioError as error:
                broken[path] = error.why
                continue
            samples = np.concatenate([w.samples[: w.valid_samples] for w in windows])
            key = f"{index:09}"
            kept[path] = _Kept(f"{name}/{key}.{encoding}", len(samples) / SAMPLE_RATE)
            seconds += kept[path].seconds
            yield Recording(key, samples, SAMPLE_RATE)

    while more:
        name = f"audio-{number:05}.tar"
        write_shard(folder / name, shard(name), encoding)
        number += 1
    told(len(paths), len(paths))
    return kept


def _moved(item: Conversation, places: Iterator[str], seconds: float) -> Conversation:
    """The record with its recordings where they are now."""

    def turn(old: Turn) -> Turn:
        parts = (Sound(next(places)) if isinstance(part, Sound) else part for part in old.parts)
        return replace(old, parts=tuple(parts))

    return replace(item, turns=tuple(map(turn, item.turns)), duration=seconds or None)


def _write_records(
    folder: Path, items: Iterable[tuple[int, Conversation, float]]
) -> tuple[pa.Table, list[Path]]:
    """Records in files that end in ``.part``, and where each lies; entries as they come."""
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    groups: dict[str, int] = {}  # the entry of a recording that records hear alone
    parts: list[Path] = []
    entries, count, stream = 0, 0, None
    try:
        for source, item, seconds in items:
            if count % SHARD_RECORDS == 0:
                if stream is not None:
                    stream.close()
                parts.append(folder / f"records-{len(parts):05}.conversations.jsonl.part")
                stream = parts[-1].open("wb")
            assert stream is not None
            line = json.dumps(conversations.record(item), ensure_ascii=False).encode() + b"\n"
            alone = item.sounds[0] if len(item.sounds) == 1 else ""
            entry = groups.get(alone, entries)
            if entry == entries:
                entries += 1
                if alone:
                    groups[alone] = entry
            values = {
                "key": item.id, "shard": len(parts) - 1, "offset": stream.tell(),
                "size": len(line), "duration": seconds, "source": source, "entry": entry,
                "characters": sum(len(turn.text) for turn in item.turns),
            }  # fmt: skip
            for name, value in values.items():
                columns[name].append(value)
            stream.write(line)
            count += 1
    except OSError as error:
        raise AfnextError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        if stream is not None:
            stream.close()
    rows = pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in columns})
    return rows, parts


def _in_order(rows: pa.Table) -> pa.Table:
    """Entries by their duration, and numbered so; records of an entry stay as they are."""
    duration = rows["duration"].to_numpy()
    entry = rows["entry"].to_numpy()
    order = np.lexsort((np.arange(len(entry)), entry, duration))
    moved = entry[order]
    number = np.cumsum(np.concatenate([[0], moved[1:] != moved[:-1]])) if len(moved) else moved
    rows = rows.take(pa.array(order))
    place = rows.schema.get_field_index("entry")
    return rows.set_column(place, SCHEMA.field("entry"), pa.array(number, pa.int64()))


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m afnext.training.archive",
        description="Records and their recordings as a training set in shards.",
    )
    parser.add_argument("records", nargs="+", help="files of records: JSON or JSON lines")
    parser.add_argument("folder", help="of the training set")
    parser.add_argument("--root", help="where relative paths of recordings begin")
    parser.add_argument("--encoding", choices=list(ENCODINGS), default="flac")
    parser.add_argument(
        "--most-skipped", type=float, default=0.01,
        help="share of the records that may be broken (default 0.01)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        done = archive(
            options.records, options.folder, root=options.root, encoding=options.encoding,
            most_skipped=options.most_skipped, told=_progress,
        )  # fmt: skip
    except (AfnextError, ValueError) as error:
        sys.exit(f"archive: {error}")
    if done.skipped.counts:
        print(f"left out:\n{done.skipped}", file=sys.stderr)
    print(
        f"{options.folder}: {done.records} records, {done.recordings} recordings, "
        f"{done.seconds / 3600:.2f} h"
    )


def _progress(done: int, recordings: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == recordings else ""
        print(f"\rrecordings: {done} of {recordings}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
