"""What is drawn from sources, by weight: each source's entries in an order of their own for every epoch, none
twice before all were there once.

Where a walk stands is a number for each source, and the few entries that are waiting for a batch that they
fit into. A draw is a function of seed and that state alone, so that a run that goes on does what it would
have done, with any number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from afnext.errors import AfnextError
from afnext.training.data.entries import AUDIO_TOKENS, Entries, Entry
from afnext.training.data.permutation import permutation
from afnext.training.data.sources import Source
from afnext.training.run.state import Cursors

if TYPE_CHECKING:
    from afnext.training.data.index import Part

LOOKAHEAD = 16
"""Entries beyond those that would fill a batch, which it is chosen from too."""


@dataclass(frozen=True, slots=True)
class Draw:
    """An entry of the source called ``source``, and which of its records."""

    source: str
    entry: Entry
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class Mixture:
    """Sources by name, and how to draw from them.

    Args:
        sources: by name.
        weights: shares of tokens, by name of a source; they need not add up to 1.
        longest: seconds; entries with more audio are left out.
        per_recording: records of an entry that a draw takes, at most; the next epoch takes others.
        per_recording_of: the same by name of a source, where it is another.
        per_second: tokens of a second of audio.

    Raises:
        AfnextError: a weight names no source or is negative, or nothing is left to draw.
    """

    sources: Mapping[str, Source]
    weights: Mapping[str, float]
    longest: float
    per_recording: int = 6
    per_second: float = AUDIO_TOKENS
    per_recording_of: Mapping[str, int] = field(default_factory=dict)
    _usable: dict[str, Entries | Part] = field(init=False, default_factory=dict)
    _shares: dict[str, float] = field(init=False, default_factory=dict)  # of draws

    def __post_init__(self) -> None:
        if unknown := [name for name in self.per_recording_of if name not in self.weights]:
            raise AfnextError(f"per_recording_of: {unknown[0]!r} is not in the mixture")
        for name, weight in sorted(self.weights.items()):
            if name not in self.sources:
                known = ", ".join(self.sources)
                raise AfnextError(f"mixture: no source is called {name!r}; there are {known}")
            if weight < 0:
                raise AfnextError(f"mixture: {name}'s weight must be at least 0, got {weight}")
            if weight > 0:
                usable = self.sources[name].entries.up_to(self.longest)
                if not usable:
                    raise AfnextError(
                        f"mixture: all records of {name} are longer than audio_seconds: {self.longest:g}"
                    )
                self._usable[name] = usable
                some = usable.sample()
                tokens = sum(self._tokens(e, range(self._count(name, e))) for e in some) / len(some)
                self._shares[name] = weight / max(1.0, tokens)
        if not self._usable:
            raise AfnextError("mixture: no source has a weight above 0")

    @property
    def names(self) -> list[str]:
        """Of the sources that are drawn from, sorted."""
        return list(self._shares)

    def left_out(self) -> list[str]:
        """A line for each source with records that are too long: how many of how many."""
        lines = []
        for name, usable in self._usable.items():
            if len(usable) == len(self.sources[name].entries):
                continue
            records = self.sources[name].entries.records
            lines.append(
                f"{name}: {records - usable.records} of {records} records are longer than "
                f"audio_seconds: {self.longest:g} and are left out"
            )
        return lines

    def _count(self, name: str, entry: Entry) -> int:
        return min(len(entry.characters), self.per_recording_of.get(name, self.per_recording))

    def _tokens(self, entry: Entry, chosen: Sequence[int]) -> int:
        return entry.tokens(chosen, self.per_second)

    def begun(self, cursors: Cursors) -> Cursors:
        """Cursors of this mixture: those given, those of sources that are new at their beginning.

        Raises:
            AfnextError: a source has another number of entries than it had; its order is another one then.
        """
        for name, size in cursors.sizes.items():
            if name in self._usable and len(self._usable[name]) != size:
                raise AfnextError(
                    f"mixture: {name} has {len(self._usable[name])} entries of at most {self.longest:g} s, "
                    f"and had {size} when the stage began: it cannot go on"
                )
        return Cursors(
            {name: cursors.drawn.get(name, 0) for name in self._usable},
            {name: len(usable) for name, usable in self._usable.items()},
            tuple(waits for waits in cursors.waiting if waits[0] in self._usable),
        )

    def draw(self, tokens: int, seed: str, cursors: Cursors) -> tuple[list[Draw], Cursors]:
        """What a batch trains on: draws that hold as nearly ``tokens`` as those at hand allow, and not more
        unless one alone does; with where the walk stands then.

        A function of its arguments alone. What is at hand are those that would fill the batch in their order
        and the next ``LOOKAHEAD``; the one that waited longest is among the batch.
        """
        cursors = self.begun(cursors)
        drawn = dict(cursors.drawn)
        numbers = list(cursors.waiting)
        pool = [self._at(name, number, seed) for name, number in numbers]
        sizes = [self._tokens(draw.entry, draw.chosen) for draw in pool]
        names, shares = list(self._shares), list(self._shares.values())
        while len(pool) < _filling(sizes, tokens) + LOOKAHEAD:
            rng = random.Random(f"{seed}/{sum(drawn.values())}")
            name = rng.choices(names, shares)[0]
            numbers.append((name, drawn[name]))
            pool.append(self._at(name, drawn[name], seed))
            sizes.append(self._tokens(pool[-1].entry, pool[-1].chosen))
            drawn[name] += 1
        chosen = best_fill(sizes, tokens)
        waiting = tuple(waits for i, waits in enumerate(numbers) if i not in chosen)
        after = Cursors(drawn, cursors.sizes, waiting)
        return [draw for i, draw in enumerate(pool) if i in chosen], after

    def _at(self, name: str, number: int, seed: str) -> Draw:
        """The draw that has this number in its source's walk."""
        usable = self._usable[name]
        epoch, place = divmod(number, len(usable))
        at = permutation(len(usable), f"{seed}/{name}/{epoch}")[place]
        entry = usable[at]
        count, records = self._count(name, entry), len(entry.records)
        if count == records:
            return Draw(name, entry, tuple(range(count)))
        order = random.Random(f"{seed}/{name}/{at}").sample(range(records), records)
        turns = (order[(epoch * count + i) % records] for i in range(count))
        return Draw(name, entry, tuple(sorted(turns)))


def _filling(sizes: Sequence[int], tokens: int) -> int:
    """How many of the first reach ``tokens``; one more than there are where all do not."""
    total = 0
    for count, size in enumerate(sizes, 1):
        total += size
        if total >= tokens:
            return count
    return len(sizes) + 1


def best_fill(sizes: Sequence[int], tokens: int) -> set[int]:
    """Which of ``sizes`` add up to as much as there can be of ``tokens``, the first among them; of two such
    sets the one with what comes earlier. The first alone where that is more.
    """
    room = tokens - sizes[0]
    if room <= 0:
        return {0}
    # Bit n of a set: some of the sizes so far add up to n.
    reached, mask = [1], (1 << room + 1) - 1
    for size in sizes[1:]:
        reached.append((reached[-1] | reached[-1] << size) & mask)
    left = reached[-1].bit_length() - 1
    chosen = {0}
    for i in range(len(sizes) - 1, 0, -1):
        if not reached[i - 1] >> left & 1:
            chosen.add(i)
            left -= sizes[i]
    return chosen
