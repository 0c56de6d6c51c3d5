"""``python -m afnext.training.archive RECORDS.json .. FOLDER``: records and their recordings as one training
set in shards, where single files and an index in memory no longer do.

Each recording is kept once, however many records hear it: 16 kHz mono, in ``audio-00000.tar``, ..
(:mod:`afnext.training.data.shards`; WebDataset's tools read them). Records lie in
``records-00000.conversations.jsonl``, .., and ``index.arrow`` lists them (:mod:`afnext.training.data.index`).
The index is written last: without it a folder is not finished, and the same call goes on where it stands,
with the shards and files of records that are whole; what could not be read is tried again. Memory does not
follow the number of records where they come one a line; a file that is one JSON value is held whole.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from shutil import rmtree

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset

from afnext.audio import MAX_SECONDS, load
from afnext.audio.windows import SAMPLE_RATE
from afnext.chat import Tokenizer
from afnext.chat.variants import detect_variant, template_of
from afnext.errors import AfnextError, AudioError
from afnext.hub import find_model
from afnext.model.checkpoint import read_json
from afnext.training.data import conversations
from afnext.training.data.conversations import Conversation, RecordError, Skipped, Sound, Turn
from afnext.training.data.entries import INDEX
from afnext.training.data.index import SCHEMA, TOKENS
from afnext.training.data.ledger import Ledger, Written
from afnext.training.data.packing import encode
from afnext.training.data.prefetch import ahead
from afnext.training.data.shards import ENCODINGS, Encoded, encoded, is_whole, write_shard
from afnext.training.data.write_index import merged, write_index, write_part

SHARD_SECONDS = 8 * 3600.0  # of audio: FLAC is then about 0.5 GB, Opus 0.1 GB
SHARD_RECORDS = 1_000_000
LEDGER = "recordings.sqlite"
"""Of a folder that is not finished."""
PART = ".part"
"""How files of records end until all of them are there: a folder with some is no source."""
OURS = re.compile(
    r"audio-\d{5}\.(tar|index\.json).*|records-\d{5}\.(conversations\.jsonl|rows\.arrow).*"
)
"""Names of the files that an archive writes."""
ROWS = 4096  # of records that are held before they become a batch
AHEAD = 4  # recordings that are read and encoded ahead, for each process


@dataclass(frozen=True)
class Archived:
    """What was written: ``records`` and the ``recordings`` that they hear, ``seconds`` of them, and what was
    left out.
    """

    records: int
    recordings: int
    seconds: float
    skipped: Skipped


def archive(
    files: Sequence[str | Path],
    folder: str | Path,
    *,
    root: str | Path | None = None,
    encoding: str = "flac",
    shard_seconds: float = SHARD_SECONDS,
    most_skipped: float = 0.01,
    processes: int = 0,
    model: str | Path | None = None,
    told: Callable[[int, int], None] = lambda done, recordings: None,
) -> Archived:
    """Write the training set, or go on where a call with the same arguments was broken off.

    Args:
        files: of records, as :mod:`afnext.training.data.conversations` reads them; a file is a source.
        folder: made where it is missing; must hold no finished set.
        root: where relative paths of recordings begin; by default the folder of their file.
        encoding: of the recordings: "flac" (no loss beyond 16 bits), "opus" (a quarter of that), "wav".
        shard_seconds: of audio in a shard, about.
        most_skipped: share of the records that may be left out because they, or recordings that they hear,
            cannot be read. Beyond it the call ends.
        processes: that read and encode recordings beside this one, which writes them; 0: threads of it. What
            is written does not depend on them.
        model: "nano", a folder, or a Hugging Face id: the index has the tokens of each record's text, as this
            model's template and tokenizer have them, for batches to be planned by. Without it they are
            estimated, by characters.
        told: how many recordings are done, of how many.

    Raises:
        AfnextError: too much is broken, the folder holds a set or the beginning of another, or the disk is
            full.
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
    if processes < 0:
        raise ValueError(f"archive: processes must be at least 0, got {processes!r}")
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise AfnextError(f"{folder} holds a training set: give another folder, or remove it")
    counted = None if model is None else _Counted(find_model(str(model)))
    of = {
        "files": [str(Path(file).absolute()) for file in files],
        "sizes": [Path(file).stat().st_size if Path(file).exists() else 0 for file in files],
        "root": None if root is None else str(Path(root).absolute()), "encoding": encoding,
        "shard_seconds": shard_seconds, "model": None if model is None else str(model),
    }  # fmt: skip
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _require_own(folder)
        for unfinished in folder.glob(".index.*"):
            rmtree(unfinished)
        with closing(Ledger(folder / LEDGER, of)) as ledger:
            if not ledger.listed:
                for old in _ours(folder):
                    old.unlink()
                _list(ledger, files, root, most_skipped)
            else:
                _try_again(ledger, folder, encoding)
            _write_audio(ledger, folder, encoding, shard_seconds, processes, told)
            skipped = Skipped()
            usable = _usable(ledger, files, root, encoding, skipped, counted)
            schema = SCHEMA if counted is None else SCHEMA.append(TOKENS)
            parts, records = _write_records(folder, usable, schema)
            kept = ledger.written
        names = [name.removesuffix(PART) for name in map(_records_file, range(len(parts)))]
        _check(skipped, records, most_skipped)
        for name in names:
            if (folder / (name + PART)).exists():
                (folder / (name + PART)).replace(folder / name)
        write_index(folder, merged(parts, schema), names, [str(file) for file in files], schema)
        for path in (*parts, folder / LEDGER):
            path.unlink()
    return Archived(records, *kept, skipped)


def _ours(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if OURS.fullmatch(path.name))


def _require_own(folder: Path) -> None:
    """Where no archive was begun, files of such names are somebody's."""
    if not (folder / LEDGER).exists() and (found := _ours(folder)):
        raise AfnextError(
            f"{folder} holds {found[0].name}, which an archive would write over: give another folder"
        )


def _try_again(ledger: Ledger, folder: Path, encoding: str) -> None:
    """Where a recording that could not be read can be now, it and what is behind it is written anew."""
    reading = _Reading(encoding)
    mended = (number for number, path in ledger.unreadable() if not reading[number, path].why)
    if (first := next(mended, None)) is None:
        return
    ledger.forget_from(first)
    for path in _ours(folder):
        if path.name.startswith("records-"):
            path.unlink()


def _records_file(number: int) -> str:
    return f"records-{number:05}.conversations.jsonl{PART}"


def _rows_file(number: int) -> str:
    return f"records-{number:05}.rows.arrow"


def _shard_file(number: int) -> str:
    return f"audio-{number:05}.tar"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise AfnextError(f"{folder}: cannot be written ({why})") from None


def _list(
    ledger: Ledger, files: Sequence[str | Path], root: str | Path | None, most_skipped: float
) -> None:
    """Find out which recordings there are."""
    skipped, seen = Skipped(), 0

    def heard() -> Iterator[str]:
        nonlocal seen
        for file, _, item in _records(files, skipped):
            seen += 1
            yield from _heard(item, file, root)
        _check(skipped, seen, most_skipped)  # before the list counts as whole

    ledger.fill(heard())


def _records(
    files: Iterable[str | Path], skipped: Skipped
) -> Iterator[tuple[Path, int, Conversation]]:
    for number, file in enumerate(map(Path, files)):
        for item in conversations.read(file, skipped):
            yield file, number, item


def _heard(item: Conversation, file: Path, root: str | Path | None) -> Iterator[str]:
    folder = file.parent if root is None else Path(root)
    return (str(folder / path) for path in item.sounds)


def _check(skipped: Skipped, usable: int, most: float) -> None:
    left_out = skipped.counts.total()
    if left_out > most * (usable + left_out):
        raise AfnextError(
            f"{left_out} of {usable + left_out} records cannot be used, more than {most:.1%} of them "
            f"(most_skipped):\n{skipped}"
        )


@dataclass(frozen=True, slots=True)
class _Read:
    """A recording as it goes into a shard, with its ``seconds``; or ``why`` it cannot be read."""

    number: int
    content: bytes = b""
    seconds: float = 0.0
    why: str = ""


class _Reading(Dataset[_Read]):
    """Reads recordings (their numbers and paths) and encodes them, in any thread or process."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding

    def __getitem__(self, recording: tuple[int, str]) -> _Read:
        number, path = recording
        try:
            windows = load(path, max_seconds=MAX_SECONDS)
        except AudioError as error:
            return _Read(number, why=error.why)
        samples = np.concatenate([w.samples[: w.valid_samples] for w in windows])
        content = encoded(samples, SAMPLE_RATE, self.encoding)
        return _Read(number, content, len(samples) / SAMPLE_RATE)


def _write_audio(
    ledger: Ledger,
    folder: Path,
    encoding: str,
    shard_seconds: float,
    processes: int,
    told: Callable[[int, int], None],
) -> None:
    """Recordings in shards, those that are not in whole ones yet; the ledger knows what became of each."""
    shards = range(ledger.shards)
    if lost := [n for n in shards if not is_whole(folder / _shard_file(n))]:
        ledger.forget(lost[0])
    recordings = ledger.count
    noted: list[Written] = []

    def filled(items: Iterator[_Read], shard: int) -> Iterator[Encoded]:
        seconds = 0.0
        for read in items:
            noted.append(Written(read.number, shard, read.seconds, ""))
            seconds += read.seconds
            yield Encoded(_key(read.number), read.content)
            if seconds >= shard_seconds:
                return

    def readable(reads: Iterator[_Read]) -> Iterator[_Read]:
        for read in reads:
            told(read.number - 1, recordings)
            if read.why:
                noted.append(Written(read.number, None, 0.0, read.why))
            else:
                yield read

    depth = AHEAD * max(1, processes)
    with closing(ahead(_Reading(encoding), ledger.waiting(), depth, processes)) as reads:  # type: ignore[type-var]
        items = readable(reads)
        for shard in count(ledger.shards):
            if (first := next(items, None)) is None:
                break
            path = folder / _shard_file(shard)
            write_shard(path, filled(chain((first,), items), shard), encoding)
            ledger.note(noted)
            noted.clear()
        ledger.note(noted)
    told(recordings, recordings)


def _key(number: int) -> str:
    return f"{number - 1:09}"


@dataclass(frozen=True, slots=True)
class _Usable:
    """A record whose recordings are in shards: of which ``source``, ``entry`` and ``seconds``; the ``tokens``
    of its text where they are counted.
    """

    item: Conversation
    source: int
    entry: int
    seconds: float
    tokens: int


def _usable(
    ledger: Ledger,
    files: Sequence[str | Path],
    root: str | Path | None,
    encoding: str,
    skipped: Skipped,
    counted: _Counted | None,
) -> Iterator[_Usable]:
    """The records of a set in their order; ``skipped`` gains the others."""
    others = ledger.count  # entries beyond those of recordings that records hear alone
    for file, source, item in _records(files, skipped):
        sounds = [ledger.find(path) for path in _heard(item, file, root)]
        if bad := next((sound for sound in sounds if sound.why), None):
            why = "a recording cannot be read"
            skipped.add(RecordError(why, f"{file.name}, {item.id}", bad.why))
            continue
        try:
            tokens = counted.tokens(item) if counted else 0
        except AfnextError as error:
            skipped.add(RecordError("the model's template cannot have it", item.where, str(error)))
            continue
        others += 1
        entry = sounds[0].number if len(sounds) == 1 else others
        seconds = sum(sound.seconds for sound in sounds)
        places = (f"{_shard_file(s.shard or 0)}/{_key(s.number)}.{encoding}" for s in sounds)
        yield _Usable(_moved(item, places, seconds), source, entry, seconds, tokens)


class _Counted:
    """What a model's template and tokenizer make of texts."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_folder(folder)
        variant = detect_variant(folder, read_json(folder / "config.json"))
        self.template = template_of(folder, variant, self.tokenizer)

    def tokens(self, item: Conversation) -> int:
        """Of a record without its recordings' own."""
        silent = dict.fromkeys(item.sounds, 0)
        return len(encode(item, silent, self.tokenizer, self.template).ids)


def _moved(item: Conversation, places: Iterator[str], seconds: float) -> Conversation:
    """The record with its recordings where they are now."""

    def turn(old: Turn) -> Turn:
        parts = (Sound(next(places)) if isinstance(part, Sound) else part for part in old.parts)
        return replace(old, parts=tuple(parts))

    return replace(item, turns=tuple(map(turn, item.turns)), duration=seconds or None)


def _write_records(
    folder: Path, items: Iterator[_Usable], schema: pa.Schema
) -> tuple[list[Path], int]:
    """Records in files that end in ``PART``, and where each lies in files of rows beside them, which are
    given, with how many records there are; those that are there already are whole.
    """
    parts: list[Path] = []
    records = 0
    for number in count():
        rows = folder / _rows_file(number)
        if rows.exists():
            records += sum(1 for _ in islice(items, SHARD_RECORDS))
        elif first := next(items, None):
            part = chain((first,), islice(items, SHARD_RECORDS - 1))
            batches = list(_written(folder / _records_file(number), number, part, schema))
            write_part(rows, batches, schema)
            records += sum(batch.num_rows for batch in batches)
        else:
            return parts, records
        parts.append(rows)
    raise AssertionError


def _written(
    path: Path, shard: int, items: Iterable[_Usable], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Write records into a file; gives where they lie."""
    columns: dict[str, list] = {name: [] for name in schema.names}

    def batch() -> pa.RecordBatch:
        arrays = [pa.array(columns[field.name], field.type) for field in schema]
        for values in columns.values():
            values.clear()
        return pa.record_batch(arrays, schema)

    with path.open("wb") as stream:
        for usable in items:
            item = usable.item
            line = json.dumps(conversations.record(item), ensure_ascii=False).encode() + b"\n"
            values = {
                "key": item.id, "shard": shard, "offset": stream.tell(), "size": len(line),
                "duration": usable.seconds, "source": usable.source, "entry": usable.entry,
                "characters": sum(len(turn.text) for turn in item.turns), "tokens": usable.tokens,
            }  # fmt: skip
            for name, column in columns.items():
                column.append(values[name])
            stream.write(line)
            if len(columns["key"]) == ROWS:
                yield batch()
    yield batch()


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
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1,
        help="that read and encode recordings (default: as many as there are cores)",
    )  # fmt: skip
    parser.add_argument(
        "--model", help="whose tokens batches are planned by; by default they are estimated"
    )
    options = parser.parse_args(arguments)
    try:
        done = archive(
            options.records, options.folder, root=options.root, encoding=options.encoding,
            most_skipped=options.most_skipped, processes=options.processes, model=options.model,
            told=_progress,
        )  # fmt: skip
    except (AfnextError, ValueError, RuntimeError) as error:  # the last: a process that died
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
