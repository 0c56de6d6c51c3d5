"""Melodies of General MIDI instruments, with exact notes.

FluidSynth plays every note of an instrument once, from a soundfont of Debian's packages, into a bank on
disk; melodies are put together from the bank, so that a note's onset is known to the sample. Training sets
have the instruments of one soundfont, evaluation those of another as well.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from afnext.errors import AfnextError
from afnext.training.synthesis.acoustics import stretch
from afnext.training.synthesis.sounds import SAMPLE_RATE

FOLDERS = (Path("/usr/share/sounds/sf2"), Path("/usr/share/sounds/sf3"))
# fluid-soundfont-gm, musescore-general-soundfont-small, csound-soundfont
SOUNDFONTS = ("FluidR3_GM.sf2", "MuseScore_General_Lite.sf3", "sf_GMbank.sf2")
HELD_OUT_SOUNDFONT = "TimGM6mb.sf2"  # timgm6mb-soundfont
PACKAGES = (
    "the Debian packages fluidsynth, fluid-soundfont-gm, musescore-general-soundfont-small, "
    "csound-soundfont and timgm6mb-soundfont"
)
PYTHON_PACKAGE = 'pip install "afnext[train]"'

VELOCITIES = (50, 80, 115)
NOTE, TAIL = 1.8, 0.7  # seconds that a note of the bank is held, and rings on
PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))
RELEASE = 0.04  # seconds that a note takes to fade where it ends before its sound does
TEMPOS = (50, 180)  # beats a minute
SECONDS = 300.0  # FluidSynth may take for a bank


@dataclass(frozen=True, slots=True)
class Instrument:
    """``program`` of General MIDI, counted from 0, and the notes it plays, as MIDI numbers."""

    name: str
    program: int
    low: int
    high: int


INSTRUMENTS: tuple[Instrument, ...] = (
    Instrument("piano", 0, 45, 84),
    Instrument("marimba", 12, 48, 84),
    Instrument("organ", 19, 48, 79),
    Instrument("accordion", 21, 53, 81),
    Instrument("guitar", 25, 45, 76),
    Instrument("violin", 40, 55, 88),
    Instrument("cello", 42, 40, 67),
    Instrument("harp", 46, 45, 84),
    Instrument("trumpet", 56, 55, 79),
    Instrument("saxophone", 66, 49, 75),
    Instrument("clarinet", 71, 50, 80),
    Instrument("flute", 73, 60, 88),
)


@dataclass(frozen=True, slots=True)
class Note:
    """A MIDI number with its times in seconds."""

    pitch: int
    onset: float
    offset: float

    @property
    def name(self) -> str:
        """As ``"C4"``, middle C."""
        return f"{PITCHES[self.pitch % 12]}{self.pitch // 12 - 1}"


@dataclass(frozen=True, slots=True)
class Melody:
    """Notes one after another, ordered.

    Attributes:
        instrument: its name.
        notes: of the melody, times from the start of the clip.
        tempo: beats a minute.
        loudness: ``"steady"``, ``"louder"`` or ``"softer"``: how it changes from begin to end.
    """

    instrument: str
    notes: tuple[Note, ...]
    tempo: int
    loudness: str

    @property
    def onset(self) -> float:
        return self.notes[0].onset

    @property
    def offset(self) -> float:
        return self.notes[-1].offset


def make_banks(folder: Path, soundfont: str) -> Path:
    """Have every instrument's notes in ``folder``; those that are there stay. Gives their folder.

    Raises:
        AfnextError: FluidSynth or the soundfont is not installed, or fails.
    """
    where = folder / Path(soundfont).stem
    where.mkdir(parents=True, exist_ok=True)
    for instrument in INSTRUMENTS:
        path = where / f"{instrument.name}.npy"
        if not path.exists():
            part = path.with_suffix(".part.npy")
            np.save(part, _play(instrument, soundfont))
            part.replace(path)
    return where


@lru_cache(maxsize=2 * len(INSTRUMENTS))
def bank(folder: Path, instrument: str) -> NDArray[np.int16]:
    """Of an instrument int16 ``[velocities, pitches, samples]``, mapped from disk."""
    notes: NDArray[np.int16] = np.load(folder / f"{instrument}.npy", mmap_mode="r")
    return notes


def missing_programs() -> list[str]:
    """What is not installed."""
    fonts = [f for f in (*SOUNDFONTS, HELD_OUT_SOUNDFONT) if not _find(f).exists()]
    return fonts if shutil.which("fluidsynth") else ["fluidsynth", *fonts]


def _find(soundfont: str) -> Path:
    """Where it lies; where it would lie, if nowhere."""
    places = [folder / soundfont for folder in FOLDERS]
    return next((path for path in places if path.exists()), places[0])


def _play(instrument: Instrument, soundfont: str) -> NDArray[np.int16]:
    try:
        import mido
    except ImportError:
        raise AfnextError(f"music: mido is not installed; {PYTHON_PACKAGE}") from None
    spacing = NOTE + TAIL
    pitches = range(instrument.low, instrument.high + 1)
    file = mido.MidiFile(ticks_per_beat=1000)  # at 120 beats a minute: a tick is half a millisecond
    track = mido.MidiTrack()
    file.tracks.append(track)
    track.append(mido.Message("program_change", program=instrument.program))
    for velocity in VELOCITIES:
        for pitch in pitches:
            track.append(mido.Message("note_on", note=pitch, velocity=velocity, time=0))
            track.append(mido.Message("note_off", note=pitch, time=round(2000 * NOTE)))
            track.append(mido.Message("note_off", note=pitch, time=round(2000 * TAIL)))
    with tempfile.TemporaryDirectory() as temporary:
        midi, wave = Path(temporary, "notes.mid"), Path(temporary, "notes.wav")
        file.save(midi)
        command = ["fluidsynth", "-niq", "-R", "0", "-C", "0", "-g", "0.6", "-r", str(SAMPLE_RATE),
                   "-F", str(wave), str(_find(soundfont)), str(midi)]  # fmt: skip
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=SECONDS)
            samples, _ = soundfile.read(wave, dtype="int16", always_2d=True)
        except (OSError, subprocess.SubprocessError, soundfile.LibsndfileError) as error:
            raise AfnextError(
                f"music: FluidSynth did not play {soundfont}; it needs {PACKAGES} ({error})"
            ) from None
    mono = samples.astype(np.int32).sum(1) // 2
    each, count = round(spacing * SAMPLE_RATE), len(VELOCITIES) * len(pitches)
    mono = np.pad(mono, (0, max(0, count * each - len(mono))))[: count * each]
    return mono.reshape(len(VELOCITIES), len(pitches), each).astype(np.int16)


def play(
    seconds: float,
    rng: np.random.Generator,
    folder: Path,
    onset: float = 0.0,
    borrowed: int = 0,
) -> tuple[Melody, NDArray[np.float32]]:
    """A random melody of at most ``seconds``, and its samples: float32 ``[S]``, unit RMS.

    Args:
        seconds: how long it may last, the last note's sound included.
        rng: decides everything.
        folder: the banks of one soundfont, as ``make_banks`` gives it.
        onset: added to all times of the melody.
        borrowed: semitones; each note is one so much lower in the bank, played faster: an instrument of
            another size. Where the bank has none, the nearest that it has.
    """
    instrument = INSTRUMENTS[rng.integers(len(INSTRUMENTS))]
    tempo = int(rng.integers(TEMPOS[0] // 5, TEMPOS[1] // 5 + 1)) * 5
    beat = 60 / tempo
    span = instrument.high - instrument.low
    scale, root = SCALES[rng.integers(len(SCALES))], int(rng.integers(12))
    allowed = [p for p in range(span + 1) if (instrument.low + p - root) % 12 in scale]
    loudness = ("steady", "louder", "softer")[rng.choice(3, p=[0.5, 0.25, 0.25])]
    place = int(rng.integers(len(allowed)))
    starts: list[tuple[float, float, int]] = []
    at = 0.0
    while not starts or at + beat <= seconds:
        length = beat * float(rng.choice([1, 1, 1, 2, 0.5] if beat >= 0.5 else [1, 1, 2]))
        if starts and at + length > seconds:
            break
        length = min(length, seconds)
        starts.append((at, min(length, NOTE), allowed[place]))
        place = int(np.clip(place + rng.integers(-3, 4), 0, len(allowed) - 1))
        at += length
    end = starts[-1][0] + starts[-1][1]
    wave = np.zeros(round(end * SAMPLE_RATE) + 1, np.float32)
    notes = []
    ramp = {"steady": (1, 1), "louder": (0.15, 1), "softer": (1, 0.15)}[loudness]
    for start, length, pitch in starts:
        gain = float(np.interp(start, (0, max(end, 1e-3)), ramp))
        level = 0 if gain < 0.4 else 1 if gain < 0.75 else 2
        first, size = round(start * SAMPLE_RATE), round(length * SAMPLE_RATE)
        sound = _note(bank(folder, instrument.name)[level], pitch, size, borrowed) * gain
        fade = min(size, round(RELEASE * SAMPLE_RATE))
        sound[size - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
        wave[first : first + size] += sound[: len(wave) - first]
        notes.append(Note(instrument.low + pitch, onset + start, onset + start + length))
    wave /= np.sqrt(np.mean(np.square(wave))) + 1e-6
    return Melody(instrument.name, tuple(notes), tempo, loudness), wave


def _note(notes: NDArray[np.int16], pitch: int, size: int, borrowed: int) -> NDArray[np.float32]:
    """``size`` samples of a note of ``[pitches, samples]``."""
    lent = int(np.clip(pitch - borrowed, 0, len(notes) - 1))
    if lent == pitch:
        return notes[pitch, :size].astype(np.float32)
    faster = 2 ** ((pitch - lent) / 12)
    taken = notes[lent, : round(size * faster) + 1].astype(np.float32)
    sound = stretch(taken, 1 / faster)[:size]
    return np.pad(sound, (0, size - len(sound)))
