"""What became of each recording of a training set that is being written: in a database on disk (SQLite), so
that memory does not follow their number, and a call that is broken off goes on from there.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afnext.errors import AfnextError

CACHE = 64_000  # KB of the database in memory
AT_ONCE = 4096  # recordings that are read of it


@dataclass(frozen=True, slots=True)
class Written:
    """A recording: its ``number``, by when it was first heard of; the ``shard`` that has it, and its
    ``seconds``; or ``why`` it cannot be read.
    """

    number: int
    shard: int | None
    seconds: float
    why: str


class Ledger:
    """The recordings of a set.

    Args:
        path: of the database; made where there is none.
        of: what the set is made of, and how.

    Raises:
        AfnextError: the database is of something else.
    """

    def __init__(self, path: Path, of: Mapping[str, Any]) -> None:
        # No locks: file systems of clusters may have none, and one process alone writes.
        self._base = sqlite3.connect(f"{path.absolute().as_uri()}?nolock=1", uri=True)
        self._base.execute(f"PRAGMA cache_size = -{CACHE}")
        self._base.executescript(
            "CREATE TABLE IF NOT EXISTS told (key TEXT PRIMARY KEY, value TEXT);"
            "CREATE TABLE IF NOT EXISTS recordings (number INTEGER PRIMARY KEY, path TEXT UNIQUE,"
            " shard INTEGER, seconds REAL NOT NULL DEFAULT 0, why TEXT NOT NULL DEFAULT '')"
        )
        mine, theirs = json.dumps(of, sort_keys=True), self._told("of")
        if theirs is None:
            with self._base:
                self._base.execute("INSERT INTO told VALUES ('of', ?)", (mine,))
        elif theirs != mine:
            self.close()
            raise AfnextError(
                f"{path.parent} holds the beginning of a set of other records or options: give those again, "
                f"or remove it ({theirs})"
            )

    def close(self) -> None:
        self._base.close()

    @property
    def listed(self) -> bool:
        """Whether all recordings are known."""
        return self._told("listed") is not None

    def fill(self, paths: Iterable[str]) -> None:
        """All recordings, in the order in which they are heard of; one that comes again counts once."""
        with self._base:
            self._base.execute("DELETE FROM recordings")
            self._base.executemany(
                "INSERT OR IGNORE INTO recordings (path) VALUES (?)", ((path,) for path in paths)
            )
            self._base.execute("INSERT INTO told VALUES ('listed', '')")

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._one("SELECT count(*) FROM recordings"))

    @property
    def shards(self) -> int:
        """How many shards are written."""
        return int(self._one("SELECT coalesce(max(shard) + 1, 0) FROM recordings"))

    @property
    def written(self) -> tuple[int, float]:
        """How many recordings are in shards, and their seconds."""
        found = self._base.execute(
            "SELECT count(*), coalesce(sum(seconds), 0) FROM recordings WHERE shard IS NOT NULL"
        ).fetchone()
        return int(found[0]), float(found[1])

    def waiting(self) -> Iterator[tuple[int, str]]:
        """Numbers and paths of those of which nothing is known yet."""
        last = self._one(
            "SELECT coalesce(max(number), 0) FROM recordings WHERE shard IS NOT NULL OR why != ''"
        )
        while some := self._base.execute(
            "SELECT number, path FROM recordings WHERE number > ? ORDER BY number LIMIT ?",
            (last, AT_ONCE),
        ).fetchall():
            yield from some
            last = some[-1][0]

    def note(self, written: Sequence[Written]) -> None:
        """What became of some; kept from then on."""
        with self._base:
            self._base.executemany(
                "UPDATE recordings SET shard = ?, seconds = ?, why = ? WHERE number = ?",
                ((w.shard, w.seconds, w.why, w.number) for w in written),
            )

    def unreadable(self) -> list[tuple[int, str]]:
        """Numbers and paths of those that could not be read."""
        return self._base.execute(
            "SELECT number, path FROM recordings WHERE why != '' ORDER BY number"
        ).fetchall()

    def forget(self, shard: int) -> None:
        """What is known of the recordings of a shard and of those behind it."""
        self._forget(self._one("SELECT min(number) FROM recordings WHERE shard >= ?", shard))

    def forget_from(self, number: int) -> None:
        """What is known of a recording, of those behind it, and of all in the shard that it belongs in."""
        shard = self._one(
            "SELECT coalesce((SELECT min(shard) FROM recordings WHERE number > ?), max(shard))"
            " FROM recordings",
            number,
        )  # the last one ended where there was no more
        first = self._one("SELECT min(number) FROM recordings WHERE shard >= ?", shard)
        self._forget(number if first is None else min(number, first))

    def _forget(self, first: int) -> None:
        with self._base:
            self._base.execute(
                "UPDATE recordings SET shard = NULL, seconds = 0, why = '' WHERE number >= ?",
                (first,),
            )

    def find(self, path: str) -> Written:
        """What became of a recording that was listed."""
        row = self._base.execute(
            "SELECT number, shard, seconds, why FROM recordings WHERE path = ?", (path,)
        ).fetchone()
        return Written(*row)

    def _one(self, query: str, *values: Any) -> Any:
        return self._base.execute(query, values).fetchone()[0]

    def _told(self, key: str) -> str | None:
        row = self._base.execute("SELECT value FROM told WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])
