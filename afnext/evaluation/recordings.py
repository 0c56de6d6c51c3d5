"""Recordings that no generator made: those that packages of Debian install, of evident content.

None is shipped or fetched here: those that are installed are scored, and the packages of the others named.
What a recording holds is what its name in the package says; nobody's ears but a listener's have checked more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from afnext.audio import load
from afnext.audio.windows import AudioWindow
from afnext.errors import AudioError
from afnext.evaluation import answers
from afnext.evaluation.events import parse_events
from afnext.evaluation.questions import LONGEST, SHORT, Question
from afnext.evaluation.score import Scores, right
from afnext.evaluation.words import transcript_scores
from afnext.training.synthesis.music import INSTRUMENTS
from afnext.training.synthesis.sounds import CLASSES
from afnext.training.tasks.exchange import Plainly, ask
from afnext.training.tasks.lexicon import WORDS

PREFIX = "installed:"  # of their keys
ABSENT = 2  # sounds that a recording is asked for in vain


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording of a package.

    Attributes:
        package: of Debian.
        path: where it installs the file, without the first slash; behind ``::`` a path in a Qt resource file.
        licence: as the package states it.
        sound: a class of sound that is heard, or "".
        instrument: that plays, or "".
        words: that are spoken, or "".
    """

    package: str
    path: str
    licence: str
    sound: str = ""
    instrument: str = ""
    words: str = ""

    @property
    def key(self) -> str:
        return f"{PREFIX}{self.path}"


def _in(package: str, folder: str, licence: str, **kinds: dict[str, str]) -> Iterator[Recording]:
    """Recordings in a folder: for ``sound``, ``instrument`` or ``words`` what each file holds."""
    for kind, files in kinds.items():
        for name, held in files.items():
            yield Recording(package, f"{folder}{name}", licence, **{kind: held})


_GCOMPRIS = "usr/share/gcompris-qt/rcc/{0}.rcc::gcompris/src/activities/{0}/resource/"
_NUMBERS = {
    "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven", "8": "eight",
    "9": "nine", "10": "ten", "12": "twelve", "15": "fifteen", "20": "twenty", "40": "forty", "90": "ninety",
}  # fmt: skip

RECORDINGS: tuple[Recording, ...] = (
    *_in(
        "gcompris-qt-data", _GCOMPRIS.format("explore_farm_animals"), "GPL-3",
        sound={"animals/dog.ogg": "dog", "animals/cat.ogg": "cat"},
    ),
    *_in(
        "gcompris-qt-data", _GCOMPRIS.format("memory-sound"), "GPL-3",
        sound={
            "LRBark_1_LA_cut.ogg": "dog", "LRBark_3_LA_cut.ogg": "dog", "LRApplauses_1_LA_cut.ogg": "clap",
            "LRFrogsInPondDuringStormLACut.ogg": "frog", "LRStartAndStopCarEngine1LACut.ogg": "engine",
        },
    ),
    *_in(
        "gcompris-qt-data", _GCOMPRIS.format("instruments"), "GPL-3",
        sound={"snare_drum.ogg": "drum"},
        instrument={
            **{f"{name}.ogg": name for name in (
                "accordion", "cello", "clarinet", "guitar", "harp", "organ", "piano", "saxophone", "trumpet",
                "violin",
            )},
            "flute_traversiere.ogg": "flute",
        },
    ),
    *_in(
        "sound-theme-freedesktop", "usr/share/sounds/freedesktop/stereo/", "CC-BY-SA-3.0, GPL-2+",
        sound={"phone-incoming-call.oga": "phone", "alarm-clock-elapsed.oga": "alarm"},
    ),
    *_in(
        "oxygen-sounds", "usr/share/sounds/", "LGPL-3+",
        sound={"Oxygen-Im-Phone-Ring.ogg": "phone"},
    ),
    *_in(
        "freedroidrpg-data", "usr/share/freedroidrpg/data/sound/effects/", "GPL-2+",
        sound={"Glass_Break.ogg": "glass"},
    ),
    *_in(
        "sound-icons", "usr/share/sounds/sound-icons/", "GPL-2+",
        sound={"glass-water-1.wav": "glass", "canary-long.wav": "bird"},
        instrument={
            "trumpet-12.wav": "trumpet", "piano-3.wav": "piano", "violoncello-7.wav": "cello",
        },
    ),
    *_in("tuxpaint-data", "usr/share/tuxpaint/sounds/", "GPL-2+", instrument={"harp.wav": "harp"}),
    *_in(
        "alsa-utils", "usr/share/sounds/alsa/", "GPL-2",
        sound={"Noise.wav": "hiss"},
        words={
            f"{a}_{b}.wav": f"{a} {b}"
            for a in ("Front", "Rear", "Side") for b in ("Left", "Right", "Center")
            if (a, b) != ("Side", "Center")
        },
    ),
    *_in(
        "ktuberling-data", "usr/share/ktuberling/sounds/en/", "GPL-2+",
        words={
            **{f"{word}.ogg": word for word in ("hat", "umbrella", "shoe", "flower", "coat")},
            **{f"egypt_{word}.ogg": word for word in ("camel", "donkey", "bridge")},
        },
    ),
    *_in(
        "asterisk-core-sounds-en-wav", "usr/share/asterisk/sounds/en_US_f_Allison/", "CC-BY-SA-3.0",
        words={
            **{f"digits/{file}.wav": word for file, word in _NUMBERS.items()},
            **{f"digits/{word}.wav": word for word in ("today", "tomorrow", "yesterday")},
            "hello-world.wav": "hello world", "one-moment-please.wav": "one moment please",
        },
    ),
)  # fmt: skip


def installed(root: str | Path = "/") -> list[Recording]:
    """Those whose files are there."""
    return [r for r in RECORDINGS if (Path(root) / r.path.partition("::")[0]).is_file()]


def missing_packages(root: str | Path = "/") -> list[str]:
    """The packages of all others."""
    there = installed(root)
    return sorted({r.package for r in RECORDINGS if r not in there})


def windows(key: str, root: str | Path = "/") -> list[AudioWindow]:
    """The windows of a recording by its key.

    Raises:
        AudioError: it is not there, or cannot be read.
    """
    path, _, inside = key.removeprefix(PREFIX).partition("::")
    file = Path(root) / path
    return load(read_resource(file, inside) if inside else file)


def questions(recording: Recording) -> Iterator[Question]:
    """What is heard, what is not, what plays, what is said."""
    rng = Plainly(recording.key)

    def question(kind: str, text: str, judge: answers.Judge, longest: int = SHORT) -> Question:
        family = f"installed recordings: {kind.partition(',')[0]}"
        return Question(
            f"installed recordings: {kind}", family, (recording.key,), text, judge, longest
        )

    def presence(label: str, kind: str, truth: str) -> Question:
        text = ask("presence", truth, rng, label).question
        return question(f"presence, {kind}", text, answers.judge("presence", truth))

    if recording.words:
        text = ask("transcribe", "", rng).question
        said = recording.words
        yield question("words", text, lambda answer: transcript_scores(said, answer))
    if label := recording.sound:
        text = ask("list", "", rng).question
        yield question("sound named", text, lambda answer: _named(label, answer), LONGEST["list"])
        yield presence(label, "present", "Yes.")
        others = [c for c in CLASSES if c != label and c not in WORDS[label].confused_with]
        for other in rng.sample(others, ABSENT):
            yield presence(other, "absent", "No.")
    if played := recording.instrument:
        text = ask("instrument", "", rng).question
        yield question("instrument", text, answers.judge("instrument", played))
        absent = rng.choice([i.name for i in INSTRUMENTS if i.name != played])
        for name, kind, truth in ((played, "present", "Yes."), (absent, "absent", "No.")):
            text = ask("instrument_presence", truth, rng, name).question
            judge = answers.judge("instrument_presence", truth)
            yield question(f"instrument presence, {kind}", text, judge)


def _named(label: str, answer: str) -> Scores:
    return right(label in {event.label for event in parse_events(answer)})


def read_resource(file: Path, inside: str) -> bytes:
    """A file within a Qt resource file (``.rcc``), where it is stored as it is.

    Format: "qres", version, offsets of tree, data and names, big-endian; each node of the tree has its name,
    flags (2: a folder, with the number and place of its children), and the place of its content.

    Raises:
        AudioError: the file is of another format, or holds nothing of the name.
    """
    content = file.read_bytes()
    try:
        magic, version, tree, data, names = struct.unpack_from(">4s4I", content)
        if magic != b"qres":
            raise AudioError(f"{file} is no Qt resource file")
        size = 22 if version >= 2 else 14
        node = tree
        for part in inside.split("/"):
            count, first = struct.unpack_from(">II", content, node + 6)
            children = (tree + i * size for i in range(first, first + count))
            node = next(n for n in children if _node_name(content, names, n) == part)
        (place,) = struct.unpack_from(">I", content, node + 10)
        (length,) = struct.unpack_from(">I", content, data + place)
        start = data + place + 4
        return content[start : start + length]
    except (struct.error, StopIteration):
        raise AudioError(f"{file} has no {inside}") from None


def _node_name(content: bytes, names: int, node: int) -> str:
    (place,) = struct.unpack_from(">I", content, node)
    (length,) = struct.unpack_from(">H", content, names + place)
    start = names + place + 6
    return content[start : start + 2 * length].decode("utf-16-be")


def all_questions(found: Sequence[Recording]) -> list[Question]:
    """About all of them."""
    return [question for recording in found for question in questions(recording)]
