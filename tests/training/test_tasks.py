"""Questions and answers: every answer follows from the events, and every phrasing can be filled."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from afnext.evaluation.events import parse_events
from afnext.training.lexicon import UNHEARD, WORDS, article
from afnext.training.synthesis import CLASSES, Event
from afnext.training.synthesis.scenes import place
from afnext.training.tasks import (
    MAKERS,
    QUESTIONS,
    absent_label,
    caption,
    exchanges,
    listing,
    restyle,
)

BELL, SIREN, LATE = Event("bell", 1.24, 2.5), Event("siren", 2.0, 4.1), Event("bell", 5.0, 5.96)


def test_answers_have_the_documented_form() -> None:
    assert listing([BELL, SIREN]) == "bell <t>1.2-2.5</t>, siren <t>2.0-4.1</t>."
    assert listing([]) == "Nothing."
    assert caption([BELL, SIREN, LATE]) == "A bell rings, while a siren wails, then a bell rings."
    assert caption([]) == "Nothing happens."


def _all(task: str, events: list[Event], count: int = 200) -> Counter[str]:
    rng, maker = random.Random(0), MAKERS[task][1]
    made = (maker(events, rng) for _ in range(count))
    return Counter(f"{e.task}: {e.answer}" for e in made if e)


def test_every_answer_is_true() -> None:
    events = [BELL, SIREN, LATE]
    assert set(_all("count", events)) == {"count: bell, siren, bell: 3."}
    assert set(_all("first", events)) == {"first: bell."}
    assert set(_all("last", events)) == {"last: bell."}
    assert set(_all("neighbour", events)) == {"after: bell.", "before: bell."}  # around the siren
    assert _all("pair", events) == {}  # only the siren is there once
    assert set(_all("pair", [BELL, SIREN])) == {
        "which_first: bell.", "is_before: Yes.", "is_before: No.",
    }  # fmt: skip
    whens = set(_all("when", events))
    assert {"when: At <t>1.2-2.5</t>, <t>5.0-6.0</t>.", "when: At <t>2.0-4.1</t>."} < whens
    assert all(w.startswith(("when: At", "when: There is no ")) for w in whens)
    assert {"count_of: <t>2.0-4.1</t>: 1.", "count_of: 0."} < set(_all("count_of", events))
    assert set(_all("at", events)) <= {
        f"at: {a}" for a in ("bell.", "bell, siren.", "siren.", "Nothing.")
    }


def test_half_of_the_presence_questions_ask_for_something_absent() -> None:
    answers = _all("presence", [BELL, SIREN], 2000)
    assert answers["presence: No."] / 2000 == pytest.approx(0.5, abs=0.05)  # 4 sigma
    rng = random.Random(1)
    absent = Counter(absent_label([BELL, SIREN], rng) for _ in range(2000))
    assert not {"bell", "siren"} & set(absent)
    near = set(WORDS["bell"].confused_with) | set(WORDS["siren"].confused_with)
    assert sum(absent[c] for c in near) / 2000 > 0.4
    assert sum(absent[c] for c in UNHEARD) / 2000 == pytest.approx(0.2, abs=0.05)


def test_every_phrasing_reads_as_english() -> None:
    """No field is left open, no article is wrong, and there are several ways to ask each thing."""
    rng, scenes = random.Random(0), np.random.default_rng(0)
    seen: dict[str, set[str]] = {task: set() for task in QUESTIONS}
    for _ in range(1500):
        for exchange in exchanges(place(10.0, scenes), 6, rng):
            assert "{" not in exchange.question
            assert " a engine" not in exchange.question
            seen[exchange.task].add(exchange.question)
    assert all(len(s) >= 4 for s in seen.values())
    assert article("owl") == "an owl"
    assert set(WORDS) == set(CLASSES)
    assert not set(UNHEARD) & {n for w in WORDS.values() for n in w.nouns}


def test_restyling_keeps_the_words() -> None:
    rng = random.Random(2)
    styled = {restyle("When does the bell ring?", rng) for _ in range(300)}
    assert len(styled) > 8
    assert all("when does the bell ring" in s.lower() for s in styled)


def test_listings_are_read_back() -> None:
    for seed in range(20):
        events = place(20.0, np.random.default_rng(seed))
        found = parse_events(listing(events))
        assert [e.label for e in found] == [e.label for e in events]
        assert all(abs(a.onset - b.onset) <= 0.051 for a, b in zip(events, found, strict=True))


def test_weights_choose_what_is_asked() -> None:
    rng = random.Random(0)
    made = exchanges([BELL, SIREN], 60, rng, {"first": 1.0, "when": 1.0})
    assert {e.task for e in made} == {"list", "first", "when"}
    with pytest.raises(ValueError, match="'weather'"):
        exchanges([], 2, rng, {"weather": 1.0})
