"""Clips on disk: one int16 array per clip length, with JSON labels, made in parallel and by seed.

A data folder holds ``clips-<milliseconds>.npy`` (int16 [N, S]), ``clips-<milliseconds>.json`` (for each
clip its events as ``[label, onset, offset]``) and ``manifest.json`` (what was asked for). Clip ``i`` of
a length depends on the seed, the length and ``i`` alone, not on how many processes worked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from afnext.training.synthesis.scenes import Event, Scene, compose
from afnext.training.synthesis.sounds import SAMPLE_RATE

FORMAT = 1
CHUNK = 64


def clip(seed: int, seconds: float, index: int) -> Scene:
    """Clip ``index`` of the endless sequence that belongs to a seed and a length."""
    return compose(seconds, np.random.default_rng([seed, round(seconds * 1000), index]))


def _write_chunk(path: Path, seed: int, seconds: float, first: int, last: int) -> list[list]:
    array = np.load(path, mmap_mode="r+")
    labels = []
    for index in range(first, last):
        scene = clip(seed, seconds, index)
        array[index] = np.round(scene.samples * 32767).astype(np.int16)
        labels.append([[e.label, round(e.onset, 4), round(e.offset, 4)] for e in scene.events])
    array.flush()
    return labels


def generate(
    folder: str | Path, counts: dict[float, int], seed: int, workers: int = 1
) -> Iterator[tuple[float, int]]:
    """Write ``counts[seconds]`` clips of every length; yield ``(seconds, clips so far)`` as it goes.

    Lengths that are complete from an earlier call with the same seed and count are kept. Raises
    ``ValueError`` if the folder holds clips of another seed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    if manifest.exists() and (old := json.loads(manifest.read_text()))["seed"] != seed:
        raise ValueError(f"generate: {folder} holds clips of seed {old['seed']}, asked for {seed}")
    manifest.write_text(json.dumps({"format": FORMAT, "seed": seed, "sample_rate": SAMPLE_RATE}))
    with ProcessPoolExecutor(workers) as pool:
        for seconds, count in sorted(counts.items()):
            stem = f"clips-{round(seconds * 1000)}"
            final, labels_path = folder / f"{stem}.npy", folder / f"{stem}.json"
            if labels_path.exists() and len(json.loads(labels_path.read_text())) == count:
                yield seconds, count
                continue
            partial = folder / f"{stem}.partial.npy"
            shape = (count, round(seconds * SAMPLE_RATE))
            np.lib.format.open_memmap(partial, "w+", np.int16, shape).flush()
            firsts = range(0, count, CHUNK)
            lasts = [min(count, first + CHUNK) for first in firsts]
            labels: list[list] = []
            args = (repeat(partial), repeat(seed), repeat(seconds), firsts, lasts)
            for part in pool.map(_write_chunk, *args):
                labels += part
                yield seconds, len(labels)
            partial.replace(final)
            labels_path.write_text(json.dumps(labels))


@dataclass(frozen=True)
class ClipSet:
    """All clips of one length: ``samples`` int16 [N, S] (memory-mapped), ``events`` for each."""

    seconds: float
    samples: NDArray[np.int16]
    events: list[tuple[Event, ...]]

    def __len__(self) -> int:
        return len(self.events)


def open_clips(folder: str | Path) -> list[ClipSet]:
    """The finished lengths of a data folder, shortest first; ``ValueError`` if there is none."""
    sets = []
    for path in Path(folder).glob("clips-*.json"):
        events = [tuple(Event(*e) for e in clip) for clip in json.loads(path.read_text())]
        samples = np.load(path.with_suffix(".npy"), mmap_mode="r")
        if len(samples) != len(events):
            raise ValueError(
                f"open_clips: {path} has {len(events)} labels for {len(samples)} clips"
            )
        sets.append(ClipSet(int(path.stem.split("-")[1]) / 1000, samples, events))
    if not sets:
        raise ValueError(f"open_clips: no clips in {folder}; make them with `generate` first")
    return sorted(sets, key=lambda s: s.seconds)
