"""Scenes: sounds, speech and music with exact times, mixed over noise as a microphone would have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from afnext.training.synthesis import acoustics, music
from afnext.training.synthesis.acoustics import decibel
from afnext.training.synthesis.banks import Banks, Spoken
from afnext.training.synthesis.music import Melody
from afnext.training.synthesis.sounds import CLASSES, SAMPLE_RATE, render

ONSET_GAP = 0.2
"""Least distance between two onsets, in seconds: closer ones have no audible order."""
REPEAT_GAP = 0.3
"""Least silence between two events of one class, in seconds: closer ones sound as one."""
AUDIBLE = 0.05  # of an event's loudest 10 ms: what is softer at its end does not count
SPEAKERS = 3  # of a dialogue, at most


@dataclass(frozen=True, slots=True)
class Event:
    """A sound with its true times in seconds from the start of the clip."""

    label: str
    onset: float
    offset: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """A sentence that somebody says."""

    speaker: str
    text: str
    onset: float
    offset: float


@dataclass(frozen=True, slots=True)
class Scene:
    """``samples`` float32 ``[S]``, mono, 16 kHz, in [-1, 1], and all that is heard, each ordered by onset."""

    samples: NDArray[np.float32]
    events: tuple[Event, ...] = ()
    utterances: tuple[Utterance, ...] = ()
    melodies: tuple[Melody, ...] = ()


def most_events(seconds: float) -> int:
    """The largest number of events that a clip of sounds alone is given."""
    if seconds <= 10:
        return max(1, min(6, round(0.7 * seconds)))
    return 8 if seconds <= 30 else 10


@dataclass(frozen=True, slots=True)
class _Said:
    """A sentence as it is heard in a scene."""

    item: Spoken
    wave: NDArray[np.float32]

    @property
    def seconds(self) -> float:
        return len(self.wave) / SAMPLE_RATE


@dataclass
class _Track:
    """A scene in the making: the mix at unit RMS of a sound at 0 dB, and where there is something."""

    seconds: float
    rng: np.random.Generator
    banks: Banks
    mix: NDArray[np.float64] = field(init=False)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    utterances: list[Utterance] = field(default_factory=list)
    melodies: list[Melody] = field(default_factory=list)
    throats: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mix = np.zeros(round(self.seconds * SAMPLE_RATE))

    def add(self, wave: NDArray[np.float32], onset: float, level: float) -> None:
        """Mix a wave in at ``level`` dB."""
        start = round(onset * SAMPLE_RATE)
        room = self.mix[start : start + len(wave)]
        room += wave[: len(room)] * decibel(level)

    def free(self, what: str, length: float, overlaps: int = 1) -> float | None:
        """A random onset at which ``what`` can be heard as itself.

        It meets at most ``overlaps`` others, which begin at another time, and none of its own name.
        """
        latest = self.seconds - length - 0.05
        if latest <= 0:
            return None
        for _ in range(40):
            onset = float(self.rng.uniform(0, latest))
            met = 0
            for name, start, end in self.spans:
                gap = max(start, onset) - min(end, onset + length)
                if abs(start - onset) < ONSET_GAP or (name == what and gap < REPEAT_GAP):
                    break
                met += gap < 0
            else:
                if met <= overlaps:
                    return onset
        return None

    def sound(self, label: str, overlaps: int = 1, level: tuple[float, float] = (-10, 2)) -> bool:
        """Whether there was room for an event of a class."""
        longest = min(2.2, self.seconds / 2)
        length = self.rng.uniform(min(0.4, longest), longest)
        if (onset := self.free(label, length, overlaps)) is None:
            return False
        # Whole 10 ms: fast transforms.
        wave = render(label, int(length * 100) * SAMPLE_RATE // 100, self.rng)
        frames = wave[: len(wave) // 160 * 160].reshape(-1, 160)
        loud = np.sqrt(np.mean(np.square(frames), 1))
        audible = (int(np.flatnonzero(loud > AUDIBLE * loud.max())[-1]) + 1) * 0.01
        self.add(wave, onset, self.rng.uniform(*level))
        self.events.append(Event(label, onset, onset + audible))
        self.spans.append((label, onset, onset + audible))
        return True

    def say(self, said: _Said, onset: float, level: float) -> None:
        offset = onset + said.seconds
        self.add(said.wave, onset, level)
        self.utterances.append(Utterance(said.item.speaker, said.item.text, onset, offset))
        self.spans.append(("speech", onset, offset))

    def pick(self, speaker: str, longest: float) -> _Said | None:
        """A sentence of a speaker that is not longer than that, in seconds."""
        own, throat = self.banks.by_speaker[speaker], self.throat(speaker)
        for _ in range(20):
            item = own[self.rng.integers(len(own))]
            if item.size * throat <= longest * SAMPLE_RATE:
                wave = self.banks.speech(item)
                if throat != 1.0:
                    wave = acoustics.stretch(wave, throat)
                if self.banks.varied and self.rng.random() < 0.3:
                    wave = acoustics.resonate(wave, self.rng)
                return _Said(item, wave)
        return None

    def throat(self, speaker: str) -> float:
        """How many times as long as the bank's a speaker's throat is, throughout the scene."""
        if not self.banks.varied:
            return 1.0
        if speaker not in self.throats:
            other = self.rng.random() < 0.5
            self.throats[speaker] = float(np.exp(self.rng.uniform(-0.13, 0.13))) if other else 1.0
        return self.throats[speaker]

    def speaker(self) -> str:
        return str(self.rng.choice(list(self.banks.by_speaker)))

    def tune(self, longest: float, overlaps: int = 1) -> bool:
        """Whether there was room for a melody."""
        length = float(self.rng.uniform(min(2.0, longest), longest))
        if length < 1.5 or (onset := self.free("music", length, overlaps)) is None:
            return False
        fonts, borrowed = self.banks.music, 0
        if self.banks.varied and self.rng.random() < 0.5:
            borrowed = int(self.rng.integers(-4, 5))
        font = fonts[self.rng.integers(len(fonts))] if len(fonts) > 1 else fonts[0]
        melody, wave = music.play(length, self.rng, font, onset, borrowed)
        if self.banks.varied and self.rng.random() < 0.4:
            wave = acoustics.resonate(wave, self.rng)
        self.add(wave, onset, self.rng.uniform(-8, 2))
        self.melodies.append(melody)
        self.spans.append(("music", melody.onset, melody.offset))
        return True


def _sounds(track: _Track) -> None:
    """Sound events alone; 5 % of clips have none."""
    if track.rng.random() < 0.05:
        return
    for _ in range(int(track.rng.integers(1, most_events(track.seconds) + 1))):
        track.sound(CLASSES[track.rng.integers(len(CLASSES))])


def _monologue(track: _Track) -> None:
    """One speaker, as many sentences as there is time for; sometimes a sound beside."""
    speaker, level = track.speaker(), track.rng.uniform(-6, 2)
    at = float(track.rng.uniform(0.1, 0.25 * track.seconds))
    while item := track.pick(speaker, track.seconds - at - 0.05):
        track.say(item, at, level)
        at = track.utterances[-1].offset + float(track.rng.uniform(0.3, 1.5))
        if at > track.seconds - 1.5 or track.rng.random() < 0.2:
            break
    if track.rng.random() < 0.2:
        track.sound(CLASSES[track.rng.integers(len(CLASSES))], level=(-14, -4))


def _dialogue(track: _Track) -> None:
    """Two or three speakers in turn, who in half of the dialogues now and then interrupt one another."""
    known = list(track.banks.by_speaker)
    count = min(len(known), int(track.rng.integers(2, SPEAKERS + 1)))
    speakers = [str(name) for name in track.rng.choice(known, count, replace=False)]
    levels = {name: float(track.rng.uniform(-5, 2)) for name in speakers}
    at, last = float(track.rng.uniform(0.1, 0.8)), ""
    often = 0.35 if track.rng.random() < 0.5 else 0.0
    free = dict.fromkeys(speakers, 0.0)  # from when on each can speak again
    while True:
        others = [name for name in speakers if name != last]
        last = others[track.rng.integers(len(others))]
        at = max(at, free[last])
        item = track.pick(last, track.seconds - at - 0.05)
        if item is None:
            return
        track.say(item, at, levels[last])
        end = track.utterances[-1].offset
        free[last] = end + REPEAT_GAP
        interrupts = track.rng.random() < often
        gap = track.rng.uniform(-0.7, -0.25) if interrupts else track.rng.uniform(0.15, 1.0)
        at = max(track.utterances[-1].onset + ONSET_GAP, end + float(gap))


def _music(track: _Track) -> None:
    """A melody, in longer clips several; sometimes a sound beside."""
    for _ in range(1 + int(track.seconds > 12) + int(track.seconds > 25)):
        track.tune(min(8.0, 0.9 * track.seconds), overlaps=0)
    if track.rng.random() < 0.2:
        track.sound(CLASSES[track.rng.integers(len(CLASSES))], level=(-14, -4))


def _mixed(track: _Track) -> None:
    """Speech, sounds and music, at least two of them."""
    parts = track.rng.permutation([True, True, track.rng.random() < 0.5])
    budget = max(1, round(track.seconds / 8))
    if parts[0]:
        for _ in range(budget):
            item = track.pick(track.speaker(), 0.5 * track.seconds)
            if item and (onset := track.free("speech", item.seconds)) is not None:
                track.say(item, onset, track.rng.uniform(-6, 2))
    if parts[1]:
        track.tune(min(6.0, 0.5 * track.seconds))
    if parts[2] or not track.spans:
        for _ in range(int(track.rng.integers(1, 1 + max(1, most_events(track.seconds) // 2)))):
            track.sound(CLASSES[track.rng.integers(len(CLASSES))])


def _sparse(track: _Track) -> None:
    """A long recording in which little happens: an event or something else every ten seconds or so, and a
    class that occurs once."""
    wanted = CLASSES[track.rng.integers(len(CLASSES))]
    track.sound(wanted, overlaps=0)
    others = [name for name in CLASSES if name != wanted]
    for _ in range(round(track.seconds / track.rng.uniform(8, 20))):
        roll = track.rng.random()
        if roll < 0.6:
            track.sound(others[track.rng.integers(len(others))])
        elif roll < 0.85:
            item = track.pick(track.speaker(), 6.0)
            if item and (onset := track.free("speech", item.seconds)) is not None:
                track.say(item, onset, track.rng.uniform(-6, 2))
        else:
            track.tune(6.0)


def _dense(track: _Track) -> None:
    """Something every two to four seconds, sounds as different as there are: each must be told from many."""
    deck = [*CLASSES]
    track.rng.shuffle(deck)
    for number in range(max(2, round(track.seconds / track.rng.uniform(2, 4)))):
        if track.rng.random() < 0.9:
            track.sound(deck[number % len(deck)])
        else:
            item = track.pick(track.speaker(), 4.0)
            if item and (onset := track.free("speech", item.seconds)) is not None:
                track.say(item, onset, track.rng.uniform(-6, 2))


KINDS: dict[str, Callable[[_Track], None]] = {
    "sounds": _sounds, "monologue": _monologue, "dialogue": _dialogue,
    "music": _music, "mixed": _mixed, "sparse": _sparse, "dense": _dense,
}  # fmt: skip
"""What a scene can be made of."""


def compose(kind: str, seconds: float, rng: np.random.Generator, banks: Banks) -> Scene:
    """One random scene.

    Sounds lie at -10 to +2 dB, the noise at -45 to -18 dB below unit RMS, the whole at -30 to -10 dBFS (one
    clip in ten of those without anything is digital silence). A fifth are in a room, a third coloured; one
    in twelve each went through a telephone's band, an overdriven input, a lossy codec.
    """
    if kind not in KINDS:
        raise ValueError(f"compose: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    track = _Track(seconds, rng, banks)
    KINDS[kind](track)
    mix = track.mix
    if track.spans and rng.random() < 0.2:
        mix = acoustics.room(mix, rng)
    if track.spans or rng.random() > 0.1:
        mix = mix + acoustics.noise(len(mix), rng) * decibel(rng.uniform(-45, -18))
    if rng.random() < 0.3:
        mix = acoustics.colour(mix, rng)
    for change in (acoustics.narrow, acoustics.clip, acoustics.lossy):
        if rng.random() < 1 / 12:
            mix = change(mix, rng)
    mix = mix * decibel(rng.uniform(-30, -10))
    peak = float(np.abs(mix).max())
    return Scene(
        (mix / max(1.0, peak / 0.98)).astype(np.float32),
        tuple(sorted(track.events, key=lambda e: e.onset)),
        tuple(sorted(track.utterances, key=lambda u: u.onset)),
        tuple(sorted(track.melodies, key=lambda m: m.onset)),
    )
