"""From logits to a token: transformers' processors, in its order."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from .params import GenerationParams
from .request import TokenLogprob

_LEAST = -1e30


class Sampler:
    """Chooses the next token of one request.

    Args:
        params: how to choose.
        prompt: token ids that count as seen for the repetition penalty, as in transformers.
        vocabulary: size of the logits.
    """

    def __init__(self, params: GenerationParams, prompt: Iterable[int], vocabulary: int) -> None:
        self.params = params
        self._generator: torch.Generator | None = None
        if params.temperature > 0:
            self._generator = torch.Generator()
            if params.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(params.seed)
        self._seen: Tensor | None = None
        if params.repetition_penalty != 1.0:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool)
            self._seen[torch.tensor(sorted(set(prompt)), dtype=torch.int64)] = True
        self._constraint = None if params.constraint is None else params.constraint.start()

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token, whatever was said before."""
        return self._generator is None and self._seen is None and self._constraint is None

    def fork(self) -> Sampler:
        """One that will draw what this one would, while this one stays where it is."""
        other = copy.copy(self)
        if self._generator is not None:
            other._generator = torch.Generator()
            other._generator.set_state(self._generator.get_state())
        if self._seen is not None:
            other._seen = self._seen.clone()
        if self._constraint is not None:
            other._constraint = self._constraint.fork()
        return other

    def __call__(self, logits: Tensor) -> int:
        """The next token for ``logits [vocabulary]``."""
        scores = logits.detach().float().cpu()
        if self._seen is not None:
            penalty = self.params.repetition_penalty
            scores = torch.where(
                self._seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores
            )
        if self._constraint is not None:
            # Of tokens that the model rules out, one that is allowed is still the better.
            scores = scores.clamp(min=_LEAST).masked_fill(~self._constraint.mask(), -torch.inf)
        token = int(scores.argmax()) if self._generator is None else self._draw(scores)
        if self._seen is not None:
            self._seen[token] = True
        if self._constraint is not None:
            self._constraint.advance(token)
        return token

    def _draw(self, scores: Tensor) -> int:
        p = self.params
        scores = scores / p.temperature
        if 0 < p.top_k < len(scores):
            scores = scores.masked_fill(scores < scores.topk(p.top_k).values[-1], -torch.inf)
        if p.top_p < 1.0:
            ordered, order = scores.sort(descending=True)
            probabilities = ordered.softmax(-1)
            # A token stays while those before it have not reached top_p; the first always stays.
            before = probabilities.cumsum(-1) - probabilities
            scores[order[before >= p.top_p]] = -torch.inf
        if p.min_p > 0.0:
            probabilities = scores.softmax(-1)
            scores = scores.masked_fill(probabilities < p.min_p * probabilities.max(), -torch.inf)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))


def logprob_of(logits: Tensor, token: int, count: int) -> TokenLogprob:
    """The log-probability of ``token`` and those of the ``count`` likeliest, for ``logits [vocabulary]``."""
    scores = logits.detach().float().cpu().log_softmax(-1)
    values, ids = scores.topk(min(count, len(scores)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(scores[token]), top)
