"""The recordings that a model is scored on: voices, sentences and a soundfont that no training set has.

They are synthesised once into a folder, deterministically: by ``SEED`` and this code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import numpy as np

from afnext.audio.windows import SAMPLE_RATE, AudioWindow, cut_windows
from afnext.cache import cache_root
from afnext.errors import AfnextError
from afnext.training.data.shards import Recording, Shard, is_whole, write_shard
from afnext.training.synthesis import banks as all_banks
from afnext.training.synthesis import music, speech
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.dataset import SceneSet
from afnext.training.synthesis.labels import from_json, to_json
from afnext.training.synthesis.scenes import Scene

SEED = 90_211
VERSION = 1  # of what this module makes of it
SENTENCES = {"held-out": 600, "known voices": 200}
SILENT_SECONDS = (2.0, 5.0, 9.0, 14.0, 20.0, 30.0)


@dataclass(frozen=True, slots=True)
class Group:
    """Recordings of one sort: scenes made of the banks of a split."""

    scenes: SceneSet
    split: str = "held-out"


GROUPS: dict[str, Group] = {
    "sounds": Group(SceneSet("sounds", 80, 2.0, 10.0)),
    "longer sounds": Group(SceneSet("sounds", 50, 12.0, 30.0)),
    "brief sounds": Group(SceneSet("sounds", 240, 2.0, 4.0)),  # for pairs
    "mixed": Group(SceneSet("mixed", 40, 6.0, 20.0)),
    "monologue": Group(SceneSet("monologue", 80, 3.0, 15.0)),
    "monologue of known voices": Group(SceneSet("monologue", 40, 3.0, 15.0), "known voices"),
    "dialogue": Group(SceneSet("dialogue", 60, 8.0, 25.0)),
    "music": Group(SceneSet("music", 80, 4.0, 12.0)),
    "sparse": Group(SceneSet("sparse", 24, 120.0, 300.0)),
}
SILENCE = "silence"


@dataclass(frozen=True)
class HeldOut:
    """The recordings in ``folder``, as :func:`make` or :func:`write` leave them."""

    folder: Path

    @cached_property
    def _shards(self) -> dict[str, Shard]:
        return {}  # the open ones

    def _shard(self, group: str) -> Shard:
        if group not in self._shards:
            self._shards[group] = Shard(_path(self.folder, group))
        return self._shards[group]

    def scenes(self, group: str, limit: int | None = None) -> list[tuple[str, Scene]]:
        """Keys, and what is heard in the recordings (without samples)."""
        shard = self._shard(group)
        return [
            (f"{group}/{key}", from_json(shard.labels(key), f"{shard.path}, {key}"))
            for key in shard.keys[:limit]
        ]

    def windows(self, key: str) -> list[AudioWindow]:
        """A recording's windows of 30 s."""
        group, _, name = key.partition("/")
        samples, _ = self._shard(group).audio(f"{name}.wav")
        return list(cut_windows([samples]))


def default_folder() -> Path:
    """Within the user's cache.

    Raises:
        AfnextError: that is switched off.
    """
    root = cache_root()
    if root is None:
        raise AfnextError(
            "AFNEXT_CACHE is set to nothing; give a folder for the held-out recordings"
        )
    return root / "evaluation" / f"{SEED}-{VERSION}"


def make(folder: str | Path, workers: int = 1) -> Iterator[tuple[str, HeldOut | None]]:
    """Have the held-out recordings in ``folder``; what is there stays.

    Yields what has been made, with None, and at the end the recordings.

    Raises:
        AfnextError: a program that speaks or plays is not installed, or the folder holds others.
    """
    folder = Path(folder)
    if not _is_whole(folder):
        if missing := [*speech.missing_programs(), *music.missing_programs()]:
            raise AfnextError(
                f"held-out recordings need {', '.join(missing)}: install {speech.PACKAGES} and "
                f"{music.PACKAGES.removeprefix('the Debian packages ')}"
            )
        found = {}
        for split, count in SENTENCES.items():
            for done, banks in all_banks.make(folder / "banks", split, count, SEED, workers):
                yield f"{split} sentences and notes: {done} of {count}", None
                if banks is not None:
                    found[split] = banks
        for name in write(folder, found):
            yield f"recordings: {name}", None
        shutil.rmtree(folder / "banks")
    yield "", HeldOut(folder)


def write(
    folder: str | Path, banks: Mapping[str, Banks], groups: Mapping[str, Group] = GROUPS
) -> Iterator[str]:
    """Write the recordings from the banks of each split; yields the groups' names as it goes.

    Raises:
        AfnextError: the folder holds other recordings, or cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "held-out.json"
    if manifest.exists() and json.loads(manifest.read_text()) != _wanted(groups):
        raise AfnextError(f"{folder} holds other recordings; choose another folder")
    for name, group in groups.items():
        path = _path(folder, name)
        if not is_whole(path):
            yield name
            write_shard(path, _recordings(group, banks[group.split]))
    if not is_whole(_path(folder, SILENCE)):
        write_shard(_path(folder, SILENCE), _silent())
    manifest.write_text(json.dumps(_wanted(groups), indent=1))


def _recordings(group: Group, banks: Banks) -> Iterator[Recording]:
    for index in range(group.scenes.count):
        scene, seconds = group.scenes.scene(SEED, index, banks)
        labels = to_json(scene, group.scenes.kind, seconds)
        yield Recording(f"{index:04}", scene.samples, SAMPLE_RATE, labels)


def _silent() -> Iterator[Recording]:
    for index, seconds in enumerate(SILENT_SECONDS):
        samples = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
        yield Recording(
            f"{index:04}", samples, SAMPLE_RATE, to_json(Scene(samples), SILENCE, seconds)
        )


def _wanted(groups: Mapping[str, Group]) -> dict[str, object]:
    """What the recordings depend on; not what training would ask about them."""
    made = {
        name: [*attrgetter("kind", "count", "shortest", "longest")(group.scenes), group.split]
        for name, group in groups.items()
    }
    return {"version": VERSION, "seed": SEED, "groups": made}


def _is_whole(folder: Path) -> bool:
    try:
        found = json.loads((folder / "held-out.json").read_text())
    except (OSError, ValueError):
        return False
    return found == _wanted(GROUPS) and all(
        is_whole(_path(folder, name)) for name in (*GROUPS, SILENCE)
    )


def _path(folder: Path, group: str) -> Path:
    return folder / f"{group.replace(' ', '-')}.tar"
