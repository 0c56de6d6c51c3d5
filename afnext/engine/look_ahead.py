"""Several tokens within a step, chosen by the device, where nobody needs to see one before the next.

They take the way of guesses: a request asks for pages for them, and what it does not want of them in the end
(its answer is over) is as if it had been guessed wrongly.
"""

from __future__ import annotations

from dataclasses import replace

from .decode_graphs import MOST_SEQUENCES
from .request import Request
from .scheduler import Part, Scheduler

AHEAD = 4  # tokens in a row: a stream still moves every few milliseconds
UNKNOWN = -1  # the id of a token that will be chosen within the step


def ask_ahead(scheduler: Scheduler) -> None:
    """Let every request propose unknown tokens, where logits alone decide and nobody waits for a turn."""
    requests = scheduler.running
    if scheduler.waiting or len(requests) > MOST_SEQUENCES or not all(map(_plain, requests)):
        return
    for request in requests:
        request.proposals = [UNKNOWN] * (AHEAD - 1)


def at_once(parts: list[Part]) -> tuple[list[Part], int]:
    """Parts that all have as many tokens as each has room for, and that number; where the host is to choose,
    parts without unknown tokens, and 0.
    """
    asked = {p.request.arrival for p in parts if p.request.proposals[:1] == [UNKNOWN]}
    if not asked:
        return parts, 0
    count = min(p.count for p in parts) if len(asked) == len(parts) else 1
    shorter = []
    for part in parts:
        if part.request.arrival in asked:
            del part.request.proposals[count - 1 :]
            part = replace(part, count=count)
        shorter.append(part)
    return shorter, count if count > 1 else 0


def _plain(request: Request) -> bool:
    """Whether its next tokens depend on their logits alone, and nothing else is asked about them."""
    return (
        request.decoding
        and request.sampler.plain
        and request.lookup is None
        and request.draft is None
        and request.params.logprobs is None
    )
