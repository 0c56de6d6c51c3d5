"""Banks of speech and notes made in NumPy, where espeak-ng, flite and FluidSynth may be missing.

They have the layout of real banks (:mod:`afnext.training.synthesis.banks`) and what a model can learn from:
a word is always the same sound but for its speaker's pitch, an instrument's notes have its spectrum and
their true pitch.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from afnext.training.synthesis.banks import FULL_SCALE, Banks
from afnext.training.synthesis.music import INSTRUMENTS, NOTE, Instrument
from afnext.training.synthesis.sentences import sentence, words
from afnext.training.synthesis.sounds import SAMPLE_RATE

SPEAKERS = {"bass": 95.0, "tenor": 135.0, "alto": 190.0, "child": 270.0}
HELD_OUT_SPEAKERS = {"baritone": 112.0, "soprano": 230.0}
"""Names with the pitch in Hz."""
FOLDER = "notes"  # of the instruments
BETWEEN_WORDS = 0.02  # seconds
SYLLABLE = 0.09


def make_banks(
    folder: Path, *, held_out: bool = False, sentences: int = 48, seed: int = 0
) -> Banks:
    """Make banks in ``folder``; those for evaluation share no speaker and no sentence with the others."""
    folder.mkdir(parents=True, exist_ok=True)
    speakers = HELD_OUT_SPEAKERS if held_out else SPEAKERS
    items, parts, at = [], [], 0
    for index in range(sentences):
        rng = np.random.default_rng([seed, held_out, index])
        speaker, text = list(speakers)[index % len(speakers)], sentence(rng, held_out)
        samples = say(text, speakers[speaker])
        items.append({"speaker": speaker, "text": text, "first": at, "size": len(samples)})
        parts.append(samples)
        at += len(samples)
    np.save(folder / "speech.npy", np.concatenate(parts))
    (folder / "speech.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / FOLDER).mkdir(exist_ok=True)
    for place, instrument in enumerate(INSTRUMENTS):
        np.save(folder / FOLDER / f"{instrument.name}.npy", play(instrument, place))
    return Banks(folder)


def say(text: str, pitch: float) -> NDArray[np.int16]:
    """A buzz for each word, as long as its spelling, through two resonances that its spelling gives."""
    gap = np.zeros(round(BETWEEN_WORDS * SAMPLE_RATE))
    parts = []
    for word in words(text):
        n = round(SYLLABLE * (1 + len(word) / 4) * SAMPLE_RATE)
        code = zlib.crc32(word.encode())
        formants = (300 + code % 600, 1000 + code // 600 % 1800)
        tones = np.arange(1, int(4000 / pitch)) * pitch
        gains = sum(1 / (1 + ((tones - f) / 120) ** 2) for f in formants)
        wave = gains @ np.sin(2 * np.pi * tones[:, None] * np.arange(n) / SAMPLE_RATE)
        parts += [wave / wave.std() * np.minimum(1, np.arange(n, 0, -1) / 200), gap]
    whole = np.concatenate(parts[:-1])
    return np.round(whole / whole.std() * FULL_SCALE).clip(-32768, 32767).astype(np.int16)


def play(instrument: Instrument, place: int) -> NDArray[np.int16]:
    """All notes, ``[velocities, pitches, samples]``: four harmonics whose strengths are the instrument's own,
    brighter where they are louder."""
    times = np.arange(round(NOTE * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    pitches = 440 * 2 ** ((np.arange(instrument.low, instrument.high + 1) - 69) / 12)
    first = np.exp(2j * np.pi * pitches[:, None].astype(np.float32) * times)
    strengths = np.random.default_rng(place).uniform(0.1, 1, 3)
    out = np.empty((3, *first.shape), np.int16)
    harmonic, total = first, first.imag.copy()
    decay = np.exp(-times * (place % 4))
    for level, strength in enumerate(strengths):
        harmonic = harmonic * first
        total += strength * harmonic.imag
        out[level] = 2000 * (level + 1) * decay * total
    return out


def make_once(
    folder: Path, split: str, sentences: int, seed: int, workers: int = 1,
    languages: Sequence[str] = (),
) -> Iterator[tuple[int, Banks | None]]:  # fmt: skip
    """In the place of ``banks.make``; what is spoken is English."""
    where = Path(folder) / split
    done = where / "done"
    made = Banks(where)
    if not done.exists():
        made = make_banks(where, held_out=split == "held-out", sentences=sentences, seed=seed)
        done.touch()
    yield sentences, made
