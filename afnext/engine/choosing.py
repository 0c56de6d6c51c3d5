"""The tokens that a step has its requests say."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from torch import Tensor

from .request import Request
from .sampler import logprob_of, sample_rows
from .scheduler import Part

if TYPE_CHECKING:
    from .engine import Engine
    from .stepper import Done


class Chooser:
    """Takes tokens by logits, and writes down what that makes of each answer.

    What it touches is a request's own, and nobody else's while a step is made.

    Args:
        engine: whose requests.
        done: where to count.
    """

    def __init__(self, engine: Engine, done: Done) -> None:
        self._engine, self._done = engine, done

    def choose(
        self, part: Part, first: int, said: Sequence[int | None], logits: Tensor | None
    ) -> int:
        """Take the next tokens of a part whose rows of ``logits`` begin with ``first``; gives how many of its
        tokens are right and stay. ``said``: what the sampler takes of each row, where that does not depend on
        what is said.
        """
        request, ahead = part.request, logits is None
        guesses, request.proposals = request.proposals, []
        count = part.count - len(guesses)
        if not part.chooses:
            return count
        right = self._take(request, logits, first, said, guesses)
        if not ahead:
            self._done.draft_tokens += len(guesses)
            self._done.accepted_tokens += right
        if request.lookup is not None and not request.record.stopped:
            most = min(request.params.speculate, request.left - 1)
            request.proposals = request.lookup.propose(request.tokens, most)
        return count + right

    def _take(
        self,
        request: Request,
        logits: Tensor | None,
        first: int,
        said: Sequence[int | None],
        guesses: list[int],
    ) -> int:
        """Tokens from the ``1 + len(guesses)`` rows from ``first`` on; returns how many guesses were right.

        A guess stands where the sampler would have said the same, so what is said does not depend on it.
        """
        for right, row in enumerate(range(first, first + len(guesses) + 1)):
            if (token := said[row]) is None:
                assert logits is not None
                token = request.sampler(logits[row])
            else:
                request.sampler.chosen(token)
            self._emit(request, token, logits, row)
            if request.record.stopped or right == len(guesses) or token != guesses[right]:
                break
        return right

    def _emit(self, request: Request, token: int, logits: Tensor | None, row: int) -> None:
        record, now = request.record, perf_counter()
        if request.first_token is None:
            request.first_token = now
            record.timings.first_token = now - request.submitted
            self._done.prompt_tokens += record.prompt_tokens
            self._done.cached_tokens += record.cached_tokens
        if token in self._engine.eos:
            record.stopped = "end"
        else:
            if request.params.logprobs is not None:
                assert logits is not None
                record.logprobs.append(logprob_of(logits[row], token, request.params.logprobs))
            record.tokens.append(token)
            request.tokens.append(token)
            self._done.tokens += 1
            if request.left == 0:
                record.stopped = "length"
        self._measure(request, now)

    def _measure(self, request: Request, now: float) -> None:
        record, timings = request.record, request.record.timings
        assert request.first_token is not None
        timings.generate, timings.total = now - request.first_token, now - request.submitted
        steps = len(record.tokens) - (0 if record.stopped == "end" else 1)
        if steps <= 0 or timings.generate <= 0:
            return
        timings.tokens_per_second = steps / timings.generate
        runner = self._engine.runner
        context = record.prompt_tokens + len(record.tokens) / 2
        read = runner.bytes_per_token + runner.cache_bytes(1) * context
        timings.gigabytes_per_second = read * timings.tokens_per_second / 1e9


def sampled(parts: Sequence[Part], logits: Tensor | None) -> list[int | None]:
    """What plain samplers take of their rows of ``logits``, at once; None for the rows of others."""
    if logits is None:
        return []
    said: list[int | None] = [None] * len(logits)
    places: list[int] = []
    rows: list[list[float]] = []
    first = 0
    for request in (part.request for part in parts if part.chooses):
        count = 1 + len(request.proposals)
        if request.sampler.plain:
            places += range(first, first + count)
            rows += request.sampler.rows(count)
        first += count
    if places:
        own = logits if len(places) == len(logits) else logits[places]
        for place, token in zip(places, sample_rows(own, rows), strict=True):
            said[place] = token
    return said
