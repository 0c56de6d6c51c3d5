"""Sentences in other languages than English, for encoders that are to hear several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from afnext.training.synthesis.sentences import is_held_out

LISTS = Path(__file__).with_suffix(".yaml")
A_PERSON = 0.3  # of sentences are about somebody without a name


@cache
def languages() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """By espeak-ng's name of each: the patterns of its sentences, and phrases by the names that patterns have
    for them.
    """
    found: dict[str, dict[str, list[str]]] = yaml.safe_load(LISTS.read_text(encoding="utf-8"))
    return found


def require_languages(names: Sequence[str]) -> None:
    """Each must be known.

    Raises:
        ValueError: one is not.
    """
    if unknown := [name for name in names if name not in languages()]:
        raise ValueError(
            f"languages: must be among {', '.join(languages())} (and English, which is always there), "
            f"got {unknown[0]!r}"
        )


def sentence_in(language: str, rng: np.random.Generator, held_out: bool = False) -> str:
    """A random sentence of 4 to 14 words in one of :func:`languages`, with capital and final mark. As of
    English, a tenth is held out.
    """
    while is_held_out(text := _draw(languages()[language], rng)) != held_out:
        pass
    return text


def _draw(lists: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
    orders = {name: rng.permutation(len(phrases)) for name, phrases in lists.items()}
    fields = {name: lists[name][order[0]] for name, order in orders.items()}
    fields["who"] = fields["person" if rng.random() < A_PERSON else "name"]
    for another, name in (("other", "name"), ("other_food", "food")):
        fields[another] = lists[name][orders[name][1]]
    text = fields["patterns"].format(**fields)
    first = text.index(next(filter(str.isalpha, text)))  # behind a mark that opens a question
    return text[:first] + text[first].upper() + text[first + 1 :]
