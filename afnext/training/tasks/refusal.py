"""Requests that are to be refused, whatever the recording: harm, and who a voice belongs to."""

from __future__ import annotations

import random

from afnext.training.tasks.exchange import Exchange, ask

ANSWER = "I cannot help with that."


def refusal(rng: random.Random) -> Exchange:
    """A request with the refusal that is its true answer."""
    return ask("refusal", ANSWER, rng)
