"""The index of a training set on disk: an Arrow file that is mapped into memory, so that it opens at once
and takes no memory of its own, however many records it lists.

A row is a record: the ``key`` that it has in its file, which ``shard`` (a file of conversations) holds it,
at which ``offset`` and with how many bytes (``size``), how long its recordings are together (``duration``,
seconds), how many ``characters`` its turns have, and which ``source`` (a file of records) it came from; where
it was written with a model's tokenizer also how many ``tokens`` its turns are, by the model's template.
Records that hear one and the same recording follow each other as one entry; entries are in the order of
their duration, so that those of at most so many seconds are the first ones. :mod:`write_index` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from afnext.errors import AfnextError
from afnext.training.data.entries import INDEX, Entry, Place

try:
    import pyarrow as pa
except ImportError:
    raise AfnextError("an index needs pyarrow: pip install 'afnext[train]'") from None

FORMAT = b"1"
SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("duration", pa.float32()),
        ("characters", pa.int32()),
        ("source", pa.int32()),
        ("entry", pa.int64()),
    ]
)
TOKENS = pa.field("tokens", pa.int32())
"""A column more, where they are known."""
FEW = 64
"""Entries of a part from which its mean length is taken where the index's sample has fewer of them."""


class Part(Sequence[Entry]):
    """Some of an index's entries."""

    def __init__(self, index: Index, entries: range) -> None:
        self._index, self._entries = index, entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Part: ...
    def __getitem__(self, index: int | slice) -> Entry | Part:
        if isinstance(index, slice):
            return Part(self._index, self._entries[index])
        return self._index.entry(self._entries[index])

    def __iter__(self) -> Iterator[Entry]:
        return map(self._index.entry, self._entries)

    def sample(self) -> Sequence[Entry]:
        """Some of them, evenly spaced, whose records lie nowhere: those that the index's metadata tell of, so
        that no more of the file comes into memory the longer it is.
        """
        told = [entry for number, entry in self._index.sampled if number in self._entries]
        return told if len(told) >= min(FEW, len(self)) else self[:: -(-len(self) // FEW)]

    @property
    def records(self) -> int:
        """How many records they have; of entries that follow each other."""
        return self._index.rows(self._entries)


class Index(Part):
    """The entries of a training set, shortest first.

    Args:
        path: of the index, or of the folder that holds it.

    Attributes:
        shards: names of the files of conversations, by number.
        sources: where records came from, by number.
        sampled: entries evenly spaced, with their numbers, see :meth:`sample`.

    Raises:
        AfnextError: there is no index in the folder, or it is broken or of another format.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path) / INDEX if Path(path).is_dir() else Path(path)
        try:
            self._map = pa.memory_map(str(path))
            table = pa.ipc.open_file(self._map).read_all()
        except OSError as error:
            raise AfnextError(f"cannot open the index {path}: {error}") from None
        except pa.ArrowInvalid as error:
            raise AfnextError(f"{path} is broken: {error}") from None
        metadata = table.schema.metadata or {}
        known = (SCHEMA, SCHEMA.append(TOKENS))
        if metadata.get(b"format") != FORMAT or not any(map(table.schema.equals, known)):
            raise AfnextError(f"{path} is no index of format {FORMAT.decode()}")
        self.shards = metadata[b"shards"].decode().split("\n")
        self.sources = metadata[b"sources"].decode().split("\n")
        try:
            told: dict[str, list] = json.loads(metadata.get(b"sample", b"{}"))
            self.sampled = [(int(number), _sampled(*values)) for number, values in told.items()]
        except (ValueError, TypeError, AttributeError) as error:
            raise AfnextError(f"{path} is broken: its sample: {error}") from None
        self._table = table
        self._columns: dict[str, NDArray[Any]] = {
            name: _mapped(table[name]) for name in table.schema.names if name != "key"
        }
        count = int(self._columns["entry"][-1]) + 1 if table.num_rows else 0
        super().__init__(self, range(count))

    def entry(self, number: int) -> Entry:
        """The entry that has this number."""
        first, last = self._records(number)
        columns = {name: values[first:last].tolist() for name, values in self._columns.items()}
        places = map(Place, columns["shard"], columns["offset"], columns["size"])
        characters, text = tuple(columns["characters"]), tuple(columns.get("tokens", ()))
        return Entry(tuple(places), max(columns["duration"]), characters, text)

    def keys(self, entry: int) -> list[str]:
        """Of an entry's records, as their files have them."""
        first, last = self._records(entry)
        keys: list[str] = self._table["key"].slice(first, last - first).to_pylist()
        return keys

    def up_to(self, seconds: float) -> Part:
        """The entries of at most so many seconds."""
        rows = np.searchsorted(self._columns["duration"], np.float32(seconds), "right")
        count = int(self._columns["entry"][rows - 1]) + 1 if rows else 0
        return Part(self, range(count))

    def rows(self, entries: range) -> int:
        """How many records some entries have that follow each other."""
        ends = np.searchsorted(self._columns["entry"], [entries.start, entries.stop])
        return int(ends[1] - ends[0])

    def _records(self, entry: int) -> tuple[int, int]:
        """The first record of an entry, and the first behind it."""
        first, last = np.searchsorted(self._columns["entry"], [entry, entry + 1])
        return int(first), int(last)


def _sampled(
    durations: Sequence[float], characters: Sequence[int], text: Sequence[int] = ()
) -> Entry:
    return Entry((), max(durations), tuple(characters), tuple(text))


def _mapped(column: pa.ChunkedArray) -> NDArray[Any]:
    """The column where it lies in the file."""
    if not column.num_chunks:
        return np.empty(0, column.type.to_pandas_dtype())
    values: NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=True)
    return values
