"""What is said, when and by whom."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from afnext.training.synthesis.scenes import Utterance
from afnext.training.synthesis.sentences import number
from afnext.training.tasks.exchange import Exchange, ask, span

Utterances = Sequence[Utterance]


def numbered(utterances: Utterances) -> dict[str, str]:
    """``Speaker 1``, ``Speaker 2``, .. by who speaks first."""
    order = dict.fromkeys(u.speaker for u in utterances)
    return {speaker: f"Speaker {i}" for i, speaker in enumerate(order, 1)}


def transcript(utterances: Utterances) -> str:
    return " ".join(u.text for u in utterances) or "No speech was recognised."


def _transcribe(utterances: Utterances, rng: random.Random) -> Exchange:
    return ask("transcribe", transcript(utterances), rng)


def _transcribe_timed(utterances: Utterances, rng: random.Random) -> Exchange | None:
    if not utterances:
        return None
    return ask("transcribe_timed", "\n".join(f"{span(u)} {u.text}" for u in utterances), rng)


def _diarize(utterances: Utterances, rng: random.Random) -> Exchange | None:
    if not utterances:
        return None
    names = numbered(utterances)
    return ask("diarize", ", ".join(f"{names[u.speaker]} {span(u)}" for u in utterances) + ".", rng)


def _attribute(utterances: Utterances, rng: random.Random) -> Exchange | None:
    if len(utterances) < 2:
        return None
    names = numbered(utterances)
    lines = (f"{span(u)} {names[u.speaker]}: {u.text}" for u in utterances)
    return ask("attribute", "\n".join(lines), rng)


def _speakers(utterances: Utterances, rng: random.Random) -> Exchange:
    return ask("speakers", f"{number(len(numbered(utterances))).capitalize()}.", rng)


def _interrupted(utterances: Utterances, rng: random.Random) -> Exchange | None:
    if len(utterances) < 2:
        return None
    interrupted = any(b.onset < a.offset for a, b in pairwise(utterances))
    return ask("interrupted", "Yes." if interrupted else "No.", rng)


Maker = Callable[[Utterances, random.Random], "Exchange | None"]

MAKERS: dict[str, tuple[float, Maker]] = {
    "transcribe": (3.0, _transcribe),
    "transcribe_timed": (1.5, _transcribe_timed),
    "diarize": (1.5, _diarize),
    "attribute": (0.5, _attribute),
    "speakers": (0.5, _speakers),
    "interrupted": (0.3, _interrupted),
}
