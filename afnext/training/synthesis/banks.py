"""What scenes are put together from and takes programs to make: spoken sentences, notes of instruments.

A bank is made once, in parallel, and kept on disk. ``train`` and ``held-out`` banks share no voice, no
sentence and no soundfont; ``known voices`` has some voices and a soundfont of ``train`` with sentences
that are held out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from afnext.training.synthesis import music
from afnext.training.synthesis.languages import require_languages, sentence_in
from afnext.training.synthesis.sentences import sentence
from afnext.training.synthesis.speech import (
    HELD_OUT_VOICES,
    KNOWN_VOICES,
    VOICES,
    speak,
    voices_in,
    who_says,
)

SPLITS = ("train", "held-out", "known voices")
SOUNDFONTS = {
    "train": music.SOUNDFONTS,
    "held-out": (music.HELD_OUT_SOUNDFONT,),
    "known voices": music.SOUNDFONTS[:1],
}
SPEAKERS = {"train": VOICES, "held-out": HELD_OUT_VOICES, "known voices": KNOWN_VOICES}
CHUNK = 50  # sentences of a task
SENTENCE_BYTES = 68_000  # of 2.1 s, on average
SOUNDFONT_BYTES = 92_000_000
FULL_SCALE = 3000.0  # int16 of a spoken sentence's unit RMS


@dataclass(frozen=True, slots=True)
class Spoken:
    """A sentence of the bank: who says what, and where its samples lie."""

    speaker: str
    text: str
    first: int
    size: int


@dataclass(frozen=True)
class Banks:
    """The banks of one split, as :func:`make` leaves them in ``folder``.

    ``varied``: what is taken from them is to be changed (by ``scenes``): another
    length of throat, another body of an instrument, so that a model does not learn a few by heart.
    """

    folder: Path
    varied: bool = False

    @cached_property
    def spoken(self) -> list[Spoken]:
        lines = (self.folder / "speech.jsonl").read_text().splitlines()
        return [Spoken(**json.loads(line)) for line in lines]

    @cached_property
    def by_speaker(self) -> dict[str, list[Spoken]]:
        found: dict[str, list[Spoken]] = {}
        for item in self.spoken:
            found.setdefault(item.speaker, []).append(item)
        return found

    @cached_property
    def _speech(self) -> NDArray[np.int16]:
        samples: NDArray[np.int16] = np.load(self.folder / "speech.npy", mmap_mode="r")
        return samples

    def speech(self, item: Spoken) -> NDArray[np.float32]:
        """Its samples, of about unit RMS."""
        part = self._speech[item.first : item.first + item.size]
        return part.astype(np.float32) / FULL_SCALE

    @cached_property
    def music(self) -> tuple[Path, ...]:
        """The folders of its instruments, one of each soundfont."""
        return tuple(sorted(path for path in self.folder.iterdir() if path.is_dir()))


def size(split: str, sentences: int) -> int:
    """Bytes on disk that the banks of a split take, about."""
    return len(SOUNDFONTS[split]) * SOUNDFONT_BYTES + sentences * SENTENCE_BYTES


def make(
    folder: str | Path,
    split: str,
    sentences: int,
    seed: int,
    workers: int = 1,
    languages: Sequence[str] = (),
) -> Iterator[tuple[int, Banks | None]]:
    """Make the banks of a split under ``folder``; what is there of an earlier call is kept.

    Yields sentences so far with None, at the end all of them with the banks. Sentence ``i`` depends on the
    seed, the split, ``languages`` and ``i`` alone; they take turns with English.

    Raises:
        AfnextError: a program or a soundfont is not installed.
        ValueError: ``split`` is none of ``SPLITS``, a language is not known, or the folder holds banks of
            another seed or size, or of other languages.
    """
    if split not in SPLITS:
        raise ValueError(f"make: split must be one of {', '.join(SPLITS)}, got {split!r}")
    require_languages(languages)
    number = SPLITS.index(split)
    where = Path(folder) / split
    where.mkdir(parents=True, exist_ok=True)
    for soundfont in SOUNDFONTS[split]:
        music.make_banks(where, soundfont)
    finished = Banks(where, varied=split == "train")
    wanted: dict[str, object] = {"seed": seed, "sentences": sentences}
    if languages:
        wanted["languages"] = list(languages)
    manifest = where / "manifest.json"
    if manifest.exists():
        if (found := json.loads(manifest.read_text())) != wanted:
            raise ValueError(f"make: {where} holds banks of {found}, asked for {wanted}")
        yield sentences, finished
        return
    firsts = range(0, sentences, CHUNK)
    lasts = [min(sentences, first + CHUNK) for first in firsts]
    items, parts, at = [], [], 0
    with ProcessPoolExecutor(workers) as pool:
        chunks = pool.map(_say_some, repeat(seed), repeat(number), repeat(languages), firsts, lasts)
        for chunk in chunks:
            for speaker, text, samples in chunk:
                items.append({"speaker": speaker, "text": text, "first": at, "size": len(samples)})
                parts.append(samples)
                at += len(samples)
            yield len(items), None
    np.save(where / "speech.part.npy", np.concatenate(parts))
    (where / "speech.part.npy").replace(where / "speech.npy")
    (where / "speech.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    manifest.write_text(json.dumps(wanted))
    yield sentences, finished


def _say_some(
    seed: int, split: int, languages: Sequence[str], first: int, last: int
) -> list[tuple[str, str, NDArray[np.int16]]]:
    held_out = SPLITS[split] != "train"
    done = []
    for index in range(first, last):
        rng = np.random.default_rng([seed, split, index])
        turn, place = divmod(index, 1 + len(languages))
        if place:
            language = languages[place - 1]
            text, voices = sentence_in(language, rng, held_out), voices_in(language)
        else:
            text, voices = sentence(rng, held_out), SPEAKERS[SPLITS[split]]
        voice = who_says(turn, voices)
        wave = speak(text, voice, rng.uniform(0.85, 1.2), rng.uniform(0.88, 1.12))
        samples = np.clip(wave * FULL_SCALE, -32768, 32767).astype(np.int16)
        done.append((voice.name, text, samples))
    return done
