"""Spoken sentences by the synthesisers of the operating system: espeak-ng and flite, many voices of both.

Both are programs of Debian's packages of the same names; nothing is fetched. What they say is 16 kHz, cut
to where it is audible, so that onset and offset are meaningful labels. The same text, voice, rate and pitch
give the same samples.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from afnext.errors import AfnextError
from afnext.training.synthesis.sounds import SAMPLE_RATE

PACKAGES = "the Debian packages espeak-ng and flite"
QUIET = 0.01  # of the peak: what lies below at either end is cut
SECONDS = 300.0  # for a sentence, which takes a twentieth: a program that hangs, not a machine that is busy


@dataclass(frozen=True, slots=True)
class Voice:
    """Somebody who speaks.

    Attributes:
        name: what labels call the speaker.
        program: ``"espeak-ng"`` or ``"flite"``.
        code: the program's name of the voice, as ``"en-us+f3"``.
        high: whether it is heard as a woman's or a child's voice.
    """

    name: str
    program: str
    code: str
    high: bool


def _espeak(name: str, accent: str, variant: str, high: bool) -> Voice:
    # Accents are names of files: espeak-ng silently ignores the variants of "en-gb", whose file is "en".
    return Voice(name, "espeak-ng", f"{accent}+{variant}", high)


_LOW = {
    "en-us": ("adam", "michael", "Andy", "caleb", "Gene", "john", "Mike", "boris"),
    "en": ("edward", "max", "ed", "m1", "paul", "norbert"),
    "en-gb-x-rp": ("david", "Alex", "Marco", "m4"),
    "en-gb-scotland": ("paul", "Lee", "travis", "m6"),
    "en-029": ("m3", "pablo", "victor"),
    "en-us-nyc": ("Andy", "quincy", "rob", "m2"),
    "en-gb-x-gbclan": ("m7", "benjamin", "miguel"),
}
_HIGH = {
    "en-us": ("Annie", "linda", "steph3", "f1", "grandma"),
    "en": ("steph", "Andrea", "belinda", "f2"),
    "en-gb-x-rp": ("Alicia", "aunty", "f3"),
    "en-gb-scotland": ("belinda", "anika", "steph2"),
    "en-029": ("f2", "linda"),
    "en-us-nyc": ("f4", "Alicia", "aunty"),
    "en-gb-x-gbclan": ("anika", "f1", "shelby", "zac"),
}
_RECORDED = (
    Voice("flite-slt", "flite", "slt", True),
    Voice("flite-rms", "flite", "rms", False),
    Voice("flite-kal", "flite", "kal16", False),
)

VOICES: tuple[Voice, ...] = (
    *(
        _espeak(f"{accent}-{variant}".lower(), accent, variant, high)
        for variants, high in ((_LOW, False), (_HIGH, True))
        for accent, names in variants.items()
        for variant in names
    ),
    *_RECORDED,
)
"""Those of training sets."""

KNOWN = (
    ("en-us", "adam"), ("en-us", "Annie"), ("en-us", "michael"), ("en-us", "linda"), ("en", "edward"),
    ("en", "steph"), ("en", "max"), ("en-gb-x-rp", "Alicia"), ("en-gb-x-rp", "david"),
    ("en-gb-scotland", "belinda"), ("en-gb-scotland", "paul"), ("en-029", "f2"), ("en-029", "m3"),
    ("en-us-nyc", "Andy"), ("en-us-nyc", "f4"), ("en-gb-x-gbclan", "m7"),
)  # fmt: skip
KNOWN_VOICES: tuple[Voice, ...] = (
    *(v for accent, name in KNOWN for v in VOICES if v.code == f"{accent}+{name}"),
    *_RECORDED,
)
"""Those of training that evaluation asks about too."""

HELD_OUT_VOICES: tuple[Voice, ...] = (
    _espeak("midlands-f5", "en-gb-x-gbcwmd", "f5", True),
    _espeak("us-robert", "en-us", "robert", False),
    Voice("flite-awb", "flite", "awb", False),
)
"""Those of evaluation alone: an accent, a variant and a recorded speaker that no training set has."""


_LOW_ABROAD = ("adam", "michael", "max", "m2", "boris", "victor")
_HIGH_ABROAD = ("Annie", "linda", "belinda", "f2", "anika", "aunty")


def voices_in(language: str) -> tuple[Voice, ...]:
    """Of training sets, for another language than English: espeak-ng's alone."""
    return tuple(
        _espeak(f"{language}-{variant}".lower(), language, variant, high)
        for variants, high in ((_LOW_ABROAD, False), (_HIGH_ABROAD, True))
        for variant in variants
    )


RECORDED = 4
"""One sentence in so many is flite's where its voices are far fewer: they are of people."""


def who_says(index: int, voices: Sequence[Voice]) -> Voice:
    """The voice of a sentence: all in turn, those of flite more often than others."""
    people = [voice for voice in voices if voice.program == "flite"]
    if index % RECORDED == 0 and 0 < 2 * RECORDED * len(people) < len(voices):
        return people[index // RECORDED % len(people)]
    return voices[index % len(voices)]


def speak(text: str, voice: Voice, rate: float = 1.0, pitch: float = 1.0) -> NDArray[np.float32]:
    """``text`` spoken: float32 ``[S]``, mono, 16 kHz, of unit RMS.

    Args:
        text: in the voice's language, on one line.
        voice: who speaks.
        rate: speed relative to the voice's own, 0.5 to 2.
        pitch: height relative to the voice's own, 0.5 to 2; flite's voices are resampled, and change
        colour.

    Raises:
        AfnextError: the program is not installed, or fails.
    """
    if voice.program == "espeak-ng":
        height = str(round(min(99, max(0, 50 * pitch))))
        wave, sample_rate = _run("-v", voice.code, "-s", str(round(165 * rate)), "-p", height,
                                 "--stdout", "--", text, program=voice.program)  # fmt: skip
    else:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "speech.wav")
            stretch = f"duration_stretch={pitch / rate:.3f}"
            wave, sample_rate = _run("-voice", voice.code, "--setf", stretch, "-t", text, "-o",
                                     str(out), program=voice.program, out=out)  # fmt: skip
        sample_rate = round(sample_rate * pitch)
    wave = soxr.resample(wave, sample_rate, SAMPLE_RATE).astype(np.float32)
    loud = np.flatnonzero(np.abs(wave) > QUIET * np.abs(wave).max(initial=0.0))
    if len(loud) == 0:
        raise AfnextError(f"speak: {voice.program} made no sound of {text!r}")
    wave = wave[loud[0] : loud[-1] + 1]
    return wave / np.sqrt(np.mean(np.square(wave)))


def missing_programs() -> list[str]:
    """Those of the programs that are not installed."""
    programs = dict.fromkeys(voice.program for voice in (*VOICES, *HELD_OUT_VOICES))
    return [program for program in programs if shutil.which(program) is None]


def _run(*arguments: str, program: str, out: Path | None = None) -> tuple[NDArray[np.float32], int]:
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, check=True, timeout=SECONDS
        )
    except FileNotFoundError:
        raise AfnextError(f"speak: {program} is not installed; speech needs {PACKAGES}") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise AfnextError(f"speak: {program} failed: {error}") from None
    wave, rate = soundfile.read(out or io.BytesIO(done.stdout), dtype="float32")
    return wave, rate
