"""Writes the index of a training set (:mod:`afnext.training.data.index`) from batches of rows: memory does
not follow their number. Until the last of them is there each column lies in a file of its own.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from afnext.errors import AfnextError
from afnext.training.data.entries import INDEX
from afnext.training.data.index import FORMAT, SCHEMA, pa

SAMPLE = 2048
"""Entries that are told of in the index's metadata, at most."""
ROWS = 8192  # that are looked at, or merged, at once
MERGED_ROWS = 512  # that are held of each part


def write_index(
    folder: str | Path,
    rows: Iterable[pa.RecordBatch],
    shards: Sequence[str],
    sources: Sequence[str],
    schema: pa.Schema = SCHEMA,
) -> int:
    """Write the index of ``folder``, whole or not at all; gives how many rows it has.

    Args:
        folder: of the training set.
        rows: of ``schema``; ``entry`` counts from 0 without gaps, and no entry is shorter than the one
            before it.
        shards: names of the files of conversations in the folder, by number.
        sources: where records came from, by number.
        schema: ``SCHEMA``, or that with ``TOKENS``.

    Raises:
        AfnextError: the disk is full, say.
    """
    path = Path(folder) / INDEX
    part = path.with_suffix(".arrow.part")
    try:
        with TemporaryDirectory(prefix=".index.", dir=folder) as beside:
            columns = [_Column(field.type, Path(beside) / field.name) for field in schema]
            sample = _Sample()
            for batch in rows:
                for column, values in zip(columns, batch.columns, strict=True):
                    column.add(values)
                sample.add(batch)
            told = {b"format": FORMAT, b"sample": sample.said().encode()}
            told |= {b"shards": "\n".join(shards).encode(), b"sources": "\n".join(sources).encode()}
            schema = schema.with_metadata(told)
            # One batch, so that each column is one piece of memory.
            whole = pa.record_batch([column.whole() for column in columns], schema)
            with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, schema) as writer:
                writer.write_batch(whole)
        part.replace(path)
    except OSError as error:
        raise AfnextError(f"cannot write the index {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return int(whole.num_rows)


def write_part(path: Path, batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write some records' rows, sorted by duration and entry, whole or not at all."""
    rows = pa.Table.from_batches(batches, schema)
    entry, duration = (rows[name].to_numpy() for name in ("entry", "duration"))
    rows = rows.take(pa.array(np.lexsort((np.arange(len(entry)), entry, duration))))
    part = path.with_name(path.name + ".part")
    with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(rows, max_chunksize=MERGED_ROWS)
    part.replace(path)


def merged(parts: Sequence[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of sorted parts in one order, their entries numbered in it; a few of each part are held."""
    entry, duration = schema.get_field_index("entry"), schema.get_field_index("duration")
    rows = heapq.merge(*map(_rows, parts), key=lambda row: (row[duration], row[entry]))
    number, before = -1, None
    while some := [list(row) for row in islice(rows, ROWS)]:
        for row in some:
            if row[entry] != before:
                number, before = number + 1, row[entry]
            row[entry] = number
        columns = zip(*some, strict=True)
        arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
        yield pa.record_batch(arrays, schema)


def _rows(part: Path) -> Iterator[tuple[Any, ...]]:
    with pa.memory_map(str(part)) as file:
        batches = pa.ipc.open_file(file)
        for number in range(batches.num_record_batches):
            columns = batches.get_batch(number).columns
            yield from zip(*(column.to_pylist() for column in columns), strict=True)


class _Column:
    """A column in a file (texts in two: where each ends, and what they say) that batches are added to."""

    def __init__(self, kind: pa.DataType, path: Path) -> None:
        self.kind, self.path, self.ends = kind, path, path.with_name(f"{path.name}.ends")
        self.text, self.count, self.size = pa.types.is_large_string(kind), 0, 0
        path.touch()
        if self.text:
            np.zeros(1, np.int64).tofile(self.ends)

    def add(self, values: pa.Array) -> None:
        self.count += len(values)
        with self.path.open("ab") as file:
            if not self.text:
                values.to_numpy(zero_copy_only=False).tofile(file)
                return
            _, places, content = values.buffers()
            ends = np.frombuffer(places, np.int64)[values.offset : values.offset + len(values) + 1]
            if content is not None:
                file.write(memoryview(content)[ends[0] : ends[-1]])
        with self.ends.open("ab") as file:
            (ends[1:] - ends[0] + self.size).tofile(file)
        self.size += int(ends[-1] - ends[0])

    def whole(self) -> pa.Array:
        """All of it, where it lies."""
        buffers = [_mapped(self.ends)] if self.text else []
        return pa.Array.from_buffers(self.kind, self.count, [None, *buffers, _mapped(self.path)])


def _mapped(path: Path) -> pa.Buffer:
    if not path.stat().st_size:
        return pa.py_buffer(b"")
    return pa.memory_map(str(path)).read_buffer()


class _Sample:
    """Entries evenly spaced among all, though it is not known how many there will be."""

    def __init__(self) -> None:
        self.stride = 1
        self.entries: dict[int, list[tuple[float, int, int]]] = {}

    def add(self, rows: pa.RecordBatch) -> None:
        for first in range(0, rows.num_rows, ROWS):
            some = rows.slice(first, ROWS)
            entry = some["entry"].to_numpy()
            chosen = some.take(pa.array(np.flatnonzero(entry % self.stride == 0)))
            counts = ("duration", "characters", "tokens")
            values = [chosen[n].to_pylist() for n in counts if n in chosen.schema.names]
            for number, *value in zip(chosen["entry"].to_pylist(), *values, strict=True):
                self.entries.setdefault(number, []).append(tuple(value))
            while len(self.entries) > SAMPLE:
                self.stride *= 2
                self.entries = {n: e for n, e in self.entries.items() if n % self.stride == 0}

    def said(self) -> str:
        """As JSON: ``{"3": [[duration, ..], [characters, ..], [tokens, ..]], ..}``, of each its records."""
        return json.dumps(
            {n: list(zip(*values, strict=True)) for n, values in self.entries.items()}
        )
