"""How people speak about the sounds: nouns, verbs and near neighbours of each class."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Word:
    """``verbs`` fit "When does the bell ...?"; ``sentence`` is the caption's clause for one event."""

    sentence: str
    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    confused_with: tuple[str, ...]


WORDS: dict[str, Word] = {
    "bell": Word("a bell rings", ("ring", "chime"), ("bell",), ("glass", "phone")),
    "siren": Word("a siren wails", ("wail", "howl"), ("siren",), ("alarm", "whistle")),
    "beep": Word("a beep sounds", ("beep",), ("beep", "beeping"), ("whistle", "bell")),
    "alarm": Word("an alarm goes off", ("go off", "ring"), ("alarm",), ("siren", "buzz")),
    "buzz": Word("a buzz is heard", ("buzz",), ("buzz", "buzzing", "buzzer"), ("engine", "horn")),
    "horn": Word("a horn blows", ("blow", "honk"), ("horn",), ("buzz", "engine")),
    "phone": Word("a phone rings", ("ring",), ("phone", "telephone"), ("bell", "alarm")),
    "whistle": Word("a whistle blows", ("blow",), ("whistle",), ("slide", "beep", "siren")),
    "slide": Word(
        "a slide falls", ("fall", "slide"), ("slide", "falling tone"), ("whistle", "bird")
    ),
    "knock": Word("a knock is heard", ("knock",), ("knock", "knocking"), ("drum", "tick")),
    "tick": Word("a tick is heard", ("tick",), ("tick", "ticking"), ("knock", "cricket")),
    "drum": Word("a drum beats", ("beat", "hit"), ("drum",), ("knock", "rumble")),
    "clap": Word("hands clap", ("clap",), ("clap", "clapping", "applause"), ("knock", "footsteps")),
    "footsteps": Word(
        "footsteps pass", ("pass", "walk by"), ("footsteps", "steps"), ("knock", "clap")
    ),
    "glass": Word("glass clinks", ("clink", "break"), ("glass",), ("bell", "drip")),
    "drip": Word("water drips", ("drip",), ("drip", "dripping", "water"), ("glass", "frog")),
    "hiss": Word("a hiss is heard", ("hiss",), ("hiss", "hissing"), ("wind", "tick")),
    "rumble": Word("a rumble is heard", ("rumble",), ("rumble", "rumbling"), ("wind", "engine")),
    "wind": Word("wind blows", ("blow", "howl"), ("wind",), ("hiss", "rumble")),
    "engine": Word("an engine runs", ("run", "rev"), ("engine", "motor"), ("buzz", "helicopter")),
    "helicopter": Word("a helicopter flies by", ("fly by",), ("helicopter",), ("engine", "drum")),
    "bird": Word("a bird sings", ("sing", "chirp", "tweet"), ("bird",), ("cricket", "slide")),
    "dog": Word("a dog barks", ("bark",), ("dog", "barking"), ("cat", "frog")),
    "cat": Word("a cat meows", ("meow", "purr"), ("cat",), ("dog", "bird")),
    "frog": Word("a frog croaks", ("croak",), ("frog", "croaking"), ("cricket", "dog")),
    "cricket": Word("a cricket chirps", ("chirp",), ("cricket",), ("bird", "frog")),
    "speech": Word("somebody speaks", ("speak", "talk"), ("speech", "voice"), ("cat", "horn")),
    "music": Word("music plays", ("play",), ("music", "melody", "tune"), ("bell", "phone")),
}

ANY_VERB = ("sound", "start", "begin", "play", "occur", "happen", "appear")
PLURAL = ("footsteps", "steps")
MASS = ("speech", "music", "wind", "water", "applause", "glass")
"""Nouns without an indefinite article."""

UNHEARD = (
    *("baby", "cow", "horse", "sheep", "lion", "wolf", "duck", "pig", "goat", "owl", "bee"),
    *("chicken", "monkey", "elephant", "choir", "banjo", "bagpipe", "tuba", "harmonica"),
    *("crowd", "laugh", "cough", "sneeze", "printer", "keyboard", "saw", "balloon", "train"),
    *("waterfall", "kettle", "aeroplane", "tractor", "hammer", "zip", "camera", "explosion"),
)
"""Things that are in no clip: asking for them must be answered with no."""


def article(noun: str) -> str:
    """``noun`` with its indefinite article, where it takes one: "a bell", "an engine", "footsteps"."""
    if noun in PLURAL or noun in MASS or noun.endswith("ing"):
        return noun
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"
