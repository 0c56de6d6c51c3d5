"""The sources of a chain: training sets made where they are wanted, conversations on disk as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from afnext.errors import AfnextError
from afnext.training.config import RecipeError, SourceConfig, SynthesisConfig, TrainConfig
from afnext.training.data.broken import Broken, Sample
from afnext.training.data.conversations import TooManyBroken
from afnext.training.data.sources import Source
from afnext.training.data.store import is_remote
from afnext.training.run.monitor import Journal
from afnext.training.synthesis import banks
from afnext.training.synthesis.dataset import generate
from afnext.training.tasks.script import script

CORPUS = 30_000  # texts that a tokenizer is trained on


def prepare(
    config: TrainConfig, folder: Path, journal: Journal, broken: Broken | None = None
) -> tuple[dict[str, Source], dict[str, Source]]:
    """The sources for training, and those held out, by name; what is not yet under ``folder`` is made.

    Raises:
        AfnextError: a source cannot be read, or has more broken samples than it may have; ``broken`` lists
            them.
    """
    workers = config.workers or os.cpu_count() or 1
    # First: what is made may take hours.
    given = {name: _given(name, wanted, broken) for name, wanted in config.sources.items()}
    made = _synthesise(config.synthesis, folder, workers, journal)
    held_out = _synthesise(config.held_out, folder, workers, journal)
    if double := made.keys() & given.keys():
        raise RecipeError(f"sources: synthesis makes one of the name {double.pop()!r} too")
    return made | given, held_out


def _given(name: str, wanted: SourceConfig, broken: Broken | None) -> Source:
    try:
        # Absolute, for messages.
        path = wanted.path if is_remote(wanted.path) else Path(wanted.path).absolute()
        return Source(path, Path(wanted.root) if wanted.root else None, wanted.broken_limit)
    except TooManyBroken as error:
        if broken:  # which says the same with the source's name
            broken.add(Sample(name, e.where, e.why) for e in error.errors)
        raise
    except AfnextError as error:
        raise RecipeError(f"sources: {name}: {error}") from None


def _synthesise(
    wanted: SynthesisConfig | None, folder: Path, workers: int, journal: Journal
) -> dict[str, Source]:
    if wanted is None:
        return {}
    made: banks.Banks | None = banks.Banks(folder / "banks" / wanted.split)
    if any(scenes.needs_banks for sets in wanted.sets.values() for scenes in sets):
        steps = banks.make(
            folder / "banks", wanted.split, wanted.sentences, wanted.seed, workers, wanted.languages
        )
        for done, finished in steps:
            journal.advance(f"sentences, {wanted.split}", done, wanted.sentences)
            made = finished
    assert made is not None
    found = {}
    for name, sets in wanted.sets.items():
        where = folder / wanted.split / name
        for done, shards in generate(where, sets, made, wanted.seed, workers):
            journal.advance(f"scenes, {wanted.split}, {name}", done, shards)
        found[name] = Source(where)
    return found


def corpus(sources: Mapping[str, Source], most: int = CORPUS) -> Iterator[str]:
    """Texts of conversations, and of recordings as scripts where there are labels: each source's, evenly
    spread.
    """
    for source in sources.values():
        every = max(1, len(source.entries) * len(sources) // most)
        for entry in source.entries[::every]:
            with suppress(AfnextError):  # what is broken is counted where it is drawn
                for item in source.conversations(entry, range(min(2, len(entry.records)))):
                    for turn in item.turns:
                        yield turn.text
                for path in item.sounds:
                    if scene := source.labels(path):
                        yield script(scene)
