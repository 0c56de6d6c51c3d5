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
    "bell": Word("a bell rings", ("ring", "chime"), ("bell",), ("pluck", "beep")),
    "siren": Word("a siren wails", ("wail", "howl"), ("siren",), ("alarm", "whistle")),
    "beep": Word("a beep sounds", ("beep",), ("beep", "beeping"), ("whistle", "bell")),
    "alarm": Word("an alarm goes off", ("go off", "ring"), ("alarm",), ("siren", "buzz")),
    "whistle": Word("a whistle rises", ("blow", "rise"), ("whistle",), ("slide", "beep", "siren")),
    "slide": Word(
        "a slide falls", ("fall", "slide"), ("slide", "falling tone"), ("whistle", "bird")
    ),
    "knock": Word("a knock is heard", ("knock",), ("knock", "knocking"), ("drum", "tick")),
    "tick": Word("a tick is heard", ("tick",), ("tick", "ticking"), ("knock", "bird")),
    "pluck": Word("a string is plucked", ("ring",), ("pluck", "plucked string"), ("bell", "horn")),
    "hiss": Word("a hiss is heard", ("hiss",), ("hiss", "hissing"), ("rumble", "tick")),
    "rumble": Word("a rumble is heard", ("rumble",), ("rumble", "rumbling"), ("hiss", "engine")),
    "engine": Word("an engine runs", ("run", "rev"), ("engine", "motor"), ("buzz", "rumble")),
    "bird": Word("a bird sings", ("sing", "chirp", "tweet"), ("bird",), ("whistle", "slide")),
    "drum": Word("a drum beats", ("beat", "hit"), ("drum",), ("knock", "rumble")),
    "buzz": Word("a buzz is heard", ("buzz",), ("buzz", "buzzing", "buzzer"), ("engine", "horn")),
    "horn": Word("a horn blows", ("blow", "honk"), ("horn",), ("buzz", "engine")),
}

ANY_VERB = ("sound", "start", "begin", "play", "occur", "happen", "appear")

UNHEARD = (
    *("dog", "cat", "baby", "cow", "horse", "sheep", "lion", "wolf", "frog", "duck", "pig"),
    *("chicken", "monkey", "elephant", "voice", "singer", "choir", "violin", "saxophone", "piano"),
    *("accordion", "crowd", "laugh", "cough", "sneeze", "printer", "keyboard", "saw", "balloon"),
    *("waterfall", "kettle", "child", "man", "woman", "person", "speaker", "bee", "goat", "owl"),
)
"""Things that are in no clip: asking for them must be answered with no."""


def article(noun: str) -> str:
    """``noun`` with its indefinite article: "a bell", "an engine"."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"
