"""Training sets: scenes in shards, with conversations about them, made in parallel and by seed.

A folder holds ``scenes-00000.tar``, .. with their indices (:mod:`afnext.training.data.shards`), for each
``scenes-00000.conversations.jsonl`` (:mod:`afnext.training.data.conversations`, sounds as paths into the
shard), and ``dataset.json``, what was asked for. Scene ``i`` depends on the seed, its set and ``i`` alone,
not on how many processes worked; what is whole of an earlier call is kept.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from afnext.training import tasks
from afnext.training.data import conversations
from afnext.training.data.conversations import Conversation, Sound, Turn
from afnext.training.data.shards import Recording, is_whole, write_shard
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.labels import to_json
from afnext.training.synthesis.scenes import KINDS, Scene, compose
from afnext.training.synthesis.sounds import SAMPLE_RATE

BYTES = 2 * SAMPLE_RATE  # of a second of audio: WAV, 16 bits
SHARD_SECONDS = 1800.0  # of audio in a shard: 58 MB
FOLLOW_UP = 0.15  # of questions, as a further turn of the conversation before
ALIKE = 0.5  # of pairs, if any has the same sounds: so that "the same" is as often true as not
PAIR_SECONDS = 15.0


_Made = tuple[Scene, float, str]
"""A scene with its seconds and the path of its recording."""


@dataclass(frozen=True, slots=True)
class SceneSet:
    """``count`` scenes of a kind, of ``shortest`` to ``longest`` seconds.

    Lengths are drawn evenly on a logarithmic scale and are whole tenths of a second. Each scene has
    ``questions`` questions and one more for every ``7`` seconds, and one of at most ``15`` seconds on average
    ``pairs`` about it and one before it; with ``alone`` false there are none but these. ``asked`` replaces
    the weights of the kinds of question about one recording (:func:`afnext.training.tasks.about`).
    """

    kind: str
    count: int
    shortest: float
    longest: float
    questions: int = 4
    pairs: float = 0.15
    alone: bool = True
    asked: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"SceneSet: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if unknown := [task for task in self.asked or {} if task not in tasks.TASKS]:
            raise ValueError(f"SceneSet: asked: no kind of question is called {unknown[0]!r}")
        if not 0.5 <= self.shortest <= self.longest:
            raise ValueError("SceneSet: lengths must be at least 0.5 s, shortest first")

    @property
    def needs_banks(self) -> bool:
        """Whether anything is spoken or played in it."""
        return self.kind != "sounds"

    @property
    def seconds(self) -> float:
        """Of all scenes together, as is to be expected."""
        wide = self.longest / self.shortest
        mean = (self.longest - self.shortest) / math.log(wide) if wide > 1 else self.longest
        return self.count * mean

    def scene(self, seed: int, index: int, banks: Banks) -> tuple[Scene, float]:
        """Scene ``index`` of the endless sequence that belongs to a seed and this set, and its length."""
        kind = list(KINDS).index(self.kind)
        limits = [round(10 * limit) for limit in (self.shortest, self.longest)]
        rng = np.random.default_rng([seed, kind, *limits, index])
        seconds = round(self.shortest * (self.longest / self.shortest) ** rng.random(), 1)
        return compose(self.kind, seconds, rng, banks), seconds


def generate(
    folder: str | Path, sets: Sequence[SceneSet], banks: Banks, seed: int, workers: int = 1
) -> Iterator[tuple[int, int]]:
    """Write all scenes; yields ``(shards done, shards in all)`` as it goes.

    Raises:
        ValueError: the folder holds another set.
        AfnextError: it cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    given = [{k: v for k, v in asdict(s).items() if v is not None} for s in sets]
    wanted = {"seed": seed, "sets": given}
    manifest = folder / "dataset.json"
    if not manifest.exists():
        manifest.write_text(json.dumps(wanted, indent=1))
    elif json.loads(manifest.read_text()) != wanted:
        raise ValueError(f"generate: {folder} holds another data set; choose another folder")
    parts = list(_parts(sets))
    missing = [number for number in range(len(parts)) if not _is_made(folder, number)]
    if not missing:  # nothing to write: other processes of a run may be reading
        yield len(parts), len(parts)
        return
    with ProcessPoolExecutor(workers) as pool:
        chosen = [parts[number] for number in missing]
        arguments = (repeat(folder), missing, chosen, repeat(banks), repeat(seed))
        first = len(parts) - len(missing) + 1
        for done, _ in enumerate(pool.map(_write_part, *arguments), first):
            yield done, len(parts)


def _parts(sets: Sequence[SceneSet]) -> Iterator[tuple[SceneSet, int, int]]:
    """The scenes of each shard: of one set, ``[first, last)``."""
    for scenes in sets:
        mean = (scenes.shortest * scenes.longest) ** 0.5
        each = max(1, round(SHARD_SECONDS / mean))
        for first in range(0, scenes.count, each):
            yield scenes, first, min(scenes.count, first + each)


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    """A shard, and what is said about it."""
    path = folder / f"scenes-{number:05}.tar"
    return path, path.with_suffix(".conversations.jsonl")


def _is_made(folder: Path, number: int) -> bool:
    path, asked = _paths(folder, number)
    return is_whole(path) and asked.exists()


def _write_part(
    folder: Path, number: int, part: tuple[SceneSet, int, int], banks: Banks, seed: int
) -> None:
    scenes, first, last = part
    path, asked = _paths(folder, number)
    rng = random.Random(f"{seed}/{number}")
    said: list[Conversation] = []

    def recordings() -> Iterator[Recording]:
        before: _Made | None = None
        with_sounds: dict[frozenset[str], _Made] = {}  # the last scene with these and no others
        for index in range(first, last):
            scene, seconds = scenes.scene(seed, index, banks)
            key = f"{number:05}-{index:06}"
            sound = f"{path.name}/{key}.wav"
            if scenes.alone:
                said.extend(_conversations(scene, seconds, sound, scenes, rng))
            made = (scene, seconds, sound)
            if before and seconds <= PAIR_SECONDS:
                for _ in range(int(scenes.pairs + rng.random())):
                    alike = with_sounds.get(_sounds(scene))
                    other = alike if alike and rng.random() < ALIKE else before
                    if other[1] <= PAIR_SECONDS:
                        said.append(_pair(other, made, rng))
            before = with_sounds[_sounds(scene)] = made
            yield Recording(key, scene.samples, SAMPLE_RATE, to_json(scene, scenes.kind, seconds))

    write_shard(path, recordings())
    part_path = asked.with_suffix(".part")
    conversations.write(part_path, said)
    part_path.replace(asked)


def _conversations(
    scene: Scene, seconds: float, sound: str, scenes: SceneSet, rng: random.Random
) -> Iterator[Conversation]:
    turns: list[Turn] = []
    kinds: list[str] = []
    count = scenes.questions + int(seconds / 7)
    for number in range(count):
        exchange = tasks.about(scene, rng, scenes.asked)
        opening = () if turns else (Sound(sound),)
        turns += (
            Turn("user", (*opening, exchange.question)),
            Turn("assistant", (exchange.answer,)),
        )
        kinds.append(exchange.task)
        if number == count - 1 or rng.random() >= FOLLOW_UP:
            yield Conversation(f"{sound}#{number}", tuple(turns), seconds, "+".join(kinds))
            turns, kinds = [], []


def _sounds(scene: Scene) -> frozenset[str]:
    return frozenset(event.label for event in tasks.timeline(scene))


def _pair(first: _Made, second: _Made, rng: random.Random) -> Conversation:
    exchange = tasks.about_two(first[0], second[0], rng)
    asked = Turn("user", (Sound(first[2]), Sound(second[2]), exchange.question))
    turns = (asked, Turn("assistant", (exchange.answer,)))
    return Conversation(f"{first[2]}+{second[2]}", turns, first[1] + second[1], exchange.task)
