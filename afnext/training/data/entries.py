"""What is drawn from a source: a recording with all that is asked about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AUDIO_TOKENS = 25.0  # a second
CHARACTERS = 3.0  # of text in a token, about: budgets need no more
OVERHEAD = 12  # tokens of a turn's frame
SAMPLED = 100_000  # entries that are enough to know their mean length
INDEX = "index.arrow"
"""The file of a folder that lists its entries (:mod:`afnext.training.data.index`)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A record: which file of its source, where its line begins, how many bytes it has. Of a file that is one
    JSON value: which of its records, and no bytes.
    """

    file: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What is drawn at once: a recording with the records that hear it alone, or one other record.

    Attributes:
        records: where they lie.
        seconds: of audio, all recordings together.
        characters: of each record's turns.
        text: tokens of each record's turns, where an index knows them.
    """

    records: tuple[Place, ...]
    seconds: float
    characters: tuple[int, ...]
    text: tuple[int, ...] = ()

    def tokens(self, chosen: Sequence[int], per_second: float = AUDIO_TOKENS) -> int:
        """About how many tokens the recording and some of its records take, packed."""
        if self.text:
            text = float(sum(self.text[i] for i in chosen))
        else:
            text = sum(self.characters[i] / CHARACTERS + OVERHEAD for i in chosen)
        return round(per_second * self.seconds + text)


class Entries(list[Entry]):
    """Those of files that were read."""

    def up_to(self, seconds: float) -> Entries:
        """The entries with at most so much audio."""
        return Entries(entry for entry in self if entry.seconds <= seconds)

    def sample(self) -> Sequence[Entry]:
        """Some of them, evenly spaced."""
        return self[:: -(-len(self) // SAMPLED)]

    @property
    def records(self) -> int:
        """How many records they have."""
        return sum(len(entry.records) for entry in self)
