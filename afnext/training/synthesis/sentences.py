"""Free sentences over a small vocabulary: who does what, where and when, how many, at what time.

A grammar of some twenty patterns over word lists, with agreement built into the patterns. Every sentence is
spelled as it is spoken: numbers and times of day are words. A tenth of all sentences, chosen by a checksum
of their words, is held out: :func:`sentence` gives only those, or only the others.
"""

from __future__ import annotations

import re
import zlib
from functools import cache
from typing import Any

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Anna Ben Carla David Emma Felix Grace Henry Iris Jack Kate Leo Maria Nick Olga Paul Rosa Sam
    Tina Victor Wendy Alice Bruno Clara Dennis Eva Frank Gina Hugo Ivan Julia Kevin Laura Martin
    Nora Oscar Peter Rita Simon Tom
    """
)
PEOPLE = _words(
    """
    teacher doctor driver farmer nurse baker painter singer writer student lawyer pilot sailor
    waiter neighbour captain engineer gardener guard manager reporter scientist soldier tailor
    visitor manager cook judge
    """
)
THINGS = _words(
    """
    apple ball basket bicycle book bottle box bridge brush bucket button cake camera candle
    chair clock coat cup desk door dress drum envelope fence flag flower fork garden gate glass
    guitar hammer hat helmet jacket kettle key knife ladder lamp letter map mirror needle
    newspaper orange paper pencil piano picture pillow plate pocket radio ring rope sandwich
    shirt shoe shovel spoon stamp stone table tent ticket towel tower truck umbrella violin
    wagon wallet watch wheel whistle window
    """
)
PLACES = _words(
    """
    airport bakery bank beach bus cafe castle church cinema city corner desert factory farm
    field forest garage harbour hill hospital hotel island kitchen lake library market mountain
    museum office palace park platform river school station street studio theatre train valley
    village workshop
    """
)
ADJECTIVES = _words(
    """
    big black blue bright broken brown cheap clean cold dark dirty dry empty expensive fresh
    green grey heavy hot large light long new old orange pink purple red round sharp short
    silver small soft square strange strong tall tiny warm wet white wide wooden yellow young
    """
)
ANIMALS = _words(
    """
    bear camel cat cow dog donkey duck eagle fox frog goat horse lion monkey mouse parrot pig
    rabbit sheep snake tiger turtle wolf
    """
)
FOODS = _words(
    """
    bread butter cheese chocolate coffee fish fruit honey juice lemon meat milk pepper rice
    salad salt soup sugar tea water
    """
)
# Past, base form.
TAKES = (
    ("bought", "buy"), ("sold", "sell"), ("found", "find"), ("lost", "lose"), ("brought", "bring"),
    ("carried", "carry"), ("painted", "paint"), ("cleaned", "clean"), ("broke", "break"),
    ("forgot", "forget"), ("hid", "hide"), ("repaired", "repair"), ("dropped", "drop"),
    ("borrowed", "borrow"), ("opened", "open"), ("wanted", "want"), ("saw", "see"), ("left", "leave"),
    ("took", "take"), ("put", "put"), ("made", "make"), ("needed", "need"), ("watched", "watch"),
)  # fmt: skip
GOES = (
    ("walked", "walk"), ("ran", "run"), ("drove", "drive"), ("returned", "return"), ("travelled", "travel"),
    ("hurried", "hurry"), ("went", "go"), ("moved", "move"), ("came", "come"), ("climbed", "climb"),
)  # fmt: skip
ACTS = (
    ("slept", "sleep"), ("waited", "wait"), ("worked", "work"), ("laughed", "laugh"), ("danced", "dance"),
    ("played", "play"), ("rested", "rest"), ("stayed", "stay"), ("arrived", "arrive"), ("sang", "sing"),
)  # fmt: skip
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words(
    """
    January February March April May June July August September October November December
    """
)
WEATHER = _words("sunny cloudy windy rainy stormy foggy cold warm hot dry")
MANNER = _words(
    """
    slowly quickly quietly loudly carefully happily sadly suddenly finally early late again
    together alone
    """
)
WHEN = (
    "yesterday", "today", "tomorrow", "this morning", "last night", "last week", "every day",
    "in the evening", "before breakfast", "after lunch", "during dinner", "at noon", "at midnight",
)  # fmt: skip
ONES = _words("one two three four five six seven eight nine")
TEENS = _words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
ONE_IN = 10  # sentences is held out


def number(value: int) -> str:
    """1 to 9,999 in words, as British English says them."""
    if not 1 <= value <= 9999:
        raise ValueError(f"number: must be 1 to 9999, got {value}")
    parts = []
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if value >= unit:
            parts += [ONES[value // unit - 1], name]
            value %= unit
    if value and parts:
        parts.append("and")
    if value >= 20:
        parts.append(TENS[value // 10 - 2])
        value %= 10
    if value >= 10:
        parts.append(TEENS[value - 10])
    elif value:
        parts.append(ONES[value - 1])
    return " ".join(parts)


def time_of_day(minutes: int) -> str:
    """Minutes after midnight, a multiple of 5, in words: "twenty past nine", "seven thirty"."""
    hour, minute = divmod(minutes, 60)
    now, coming = (number((h - 1) % 12 + 1) for h in (hour, hour + 1))
    if minute == 0:
        return f"{now} o'clock"
    if minute in (15, 45):
        return f"a quarter past {now}" if minute == 15 else f"a quarter to {coming}"
    if minute == 30:
        return f"half past {now}" if hour % 2 else f"{now} thirty"
    return f"{number(minute)} past {now}" if minute < 30 else f"{number(60 - minute)} to {coming}"


def plural(noun: str) -> str:
    """The regular plural; the word lists have no others but these."""
    irregular = {"knife": "knives", "mouse": "mice", "sheep": "sheep", "wolf": "wolves"}
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if re.search("[^aeiou]y$", noun) else f"{noun}s"


PATTERNS = (
    "{who} {took} {a} {thing} {at_place}.",
    "{who} {took} {a} {adjective} {thing} {when}.",
    "{who} {took} the {adjective} {thing}.",
    "{who} {went} to the {place} {when}.",
    "{who} {went} to the {place} at {time}.",
    "{who} {did} {at_place} {manner}.",
    "{who} and {name} {did} {at_place}.",
    "{who} {took} {count} {things} for {name}.",
    "{who} has {count} {adjective} {things}.",
    "There are {count} {animals} {at_place}.",
    "There is {a} {adjective} {animal} near the {place}.",
    "The {thing} costs {price} pounds.",
    "The {adjective} {thing} is under the {other}.",
    "The {train} leaves at {time} from platform {small}.",
    "The meeting starts at {time} on {day}.",
    "It is {time} and the {place} is closed.",
    "It was {weather} on {day} in {month}.",
    "On {day} it will be {weather} and {other_weather}.",
    "Please {take} the {thing} to the {place}.",
    "Please {take} {count} {things} before {time}.",
    "Did {name} {take} the {adjective} {thing}?",
    "Will {name} {go} to the {place} on {day}?",
    "Can you {take} my {adjective} {thing}?",
    "Where is the {adjective} {thing}?",
    "My {person} likes {food} with {other_food}.",
    "{who} never has {food} at {time}.",
    "I {took} {a} {thing} and {a_second} {other}.",
    "We {went} to the {place} with {small} {people}.",
    "Call {name} at {digits}.",
    "The number is {digits}.",
    "Room {price} is next to the {place}.",
)
PLACED = ("at the {}", "near the {}", "behind the {}", "in front of the {}")


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _draw(rng: np.random.Generator) -> str:
    def one(words: tuple[Any, ...]) -> Any:
        return words[rng.integers(len(words))]

    pattern = one(PATTERNS)
    (took, take), (went, go), (did, _) = one(TAKES), one(GOES), one(ACTS)
    someone, name = (NAMES[i] for i in rng.choice(len(NAMES), 2, replace=False))
    thing, other = (THINGS[i] for i in rng.choice(len(THINGS), 2, replace=False))
    food, other_food = (FOODS[i] for i in rng.choice(len(FOODS), 2, replace=False))
    weather, other_weather = (WEATHER[i] for i in rng.choice(len(WEATHER), 2, replace=False))
    price = int(rng.integers(2, 100) if rng.random() < 0.6 else rng.integers(100, 2000))
    fields = {
        "who": someone if rng.random() < 0.7 else f"the {one(PEOPLE)}",
        "name": name, "person": one(PEOPLE), "people": plural(one(PEOPLE)),
        "took": took, "take": take, "went": went, "go": go, "did": did,
        "thing": thing, "other": other, "things": plural(thing), "adjective": one(ADJECTIVES),
        "animal": (animal := one(ANIMALS)), "animals": plural(animal), "food": food, "other_food": other_food,
        "place": one(PLACES), "at_place": one(PLACED).format(one(PLACES)), "when": one(WHEN),
        "manner": one(MANNER), "day": one(DAYS), "month": one(MONTHS),
        "weather": weather, "other_weather": other_weather,
        "time": time_of_day(int(rng.integers(0, 288)) * 5), "small": number(int(rng.integers(2, 13))),
        "count": number(int(rng.integers(2, 100))), "price": number(price),
        "train": one(("train", "bus", "ferry")),
        "digits": " ".join(one((*ONES, "zero")) for _ in range(rng.integers(4, 8))),
    }  # fmt: skip
    pattern = pattern.replace("{a_second} {other}", _article(other))
    text = re.sub(
        r"\{a\} \{(\w+)\}( \{\w+\})?",
        lambda found: _article(fields[found[1]]) + (found[2] or ""),
        pattern,
    ).format(**fields)
    return text[0].upper() + text[1:]


def is_held_out(text: str) -> bool:
    """Whether a sentence belongs to the tenth that no training set contains."""
    return zlib.crc32(" ".join(words(text)).encode()) % ONE_IN == 0


def sentence(rng: np.random.Generator, held_out: bool = False) -> str:
    """A random sentence of 5 to 13 words, with capital and final mark, held out or not."""
    while is_held_out(text := _draw(rng)) != held_out:
        pass
    return text


def words(text: str) -> list[str]:
    """Lower-case words without punctuation: what word errors are counted in."""
    return re.findall(r"(?:[^\W\d_]|')+", text.lower())


@cache
def vocabulary(draws: int = 20_000) -> frozenset[str]:
    """The words of many sentences: all that the grammar has, but for chance."""
    rng = np.random.default_rng(0)
    return frozenset(word for _ in range(draws) for word in words(_draw(rng)))
