"""From logits to a token: transformers' processors, in its order."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from afnext import ops

from .params import GenerationParams
from .request import TokenLogprob

_LEAST = -1e30
_BLOCK = 16  # numbers drawn at once, however many are asked for: the same ones each time
SETTINGS = 4  # of a draw: temperature, top_k, top_p, min_p


class _Numbers:
    """Random numbers in [0, 1), one for each token of an answer."""

    def __init__(self, seed: int | None) -> None:
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._next: list[float] = []

    def next(self, count: int) -> list[float]:
        """The next ones, which stay the next ones."""
        while len(self._next) < count:
            self._next += torch.rand(_BLOCK, generator=self._generator).tolist()
        return self._next[:count]

    def skip(self) -> None:
        """The first of the next ones is used."""
        self.next(1)
        del self._next[0]

    def fork(self) -> _Numbers:
        other = copy.copy(self)
        other._generator = torch.Generator()
        other._generator.set_state(self._generator.get_state())
        other._next = list(self._next)
        return other


class Sampler:
    """Chooses the next token of one request.

    Args:
        params: how to choose.
        prompt: token ids that count as seen for the repetition penalty, as in transformers.
        vocabulary: size of the logits.
    """

    def __init__(self, params: GenerationParams, prompt: Iterable[int], vocabulary: int) -> None:
        self.params = params
        self._numbers = _Numbers(params.seed) if params.temperature > 0 else None
        self._seen: Tensor | None = None
        if params.repetition_penalty != 1.0:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool)
            self._seen[torch.tensor(sorted(set(prompt)), dtype=torch.int64)] = True
        self._constraint = None if params.constraint is None else params.constraint.start()

    @property
    def plain(self) -> bool:
        """Whether logits are taken as they are, whatever was said before: ``sample_rows`` can choose then."""
        return self._seen is None and self._constraint is None

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token, whatever was said before."""
        return self._numbers is None and self.plain

    def rows(self, count: int) -> list[list[float]]:
        """How the next ``count`` tokens are drawn, each ``[*SETTINGS, number]``; temperature 0 is no draw."""
        if self._numbers is None:
            return [[0.0, 0.0, 1.0, 0.0, 0.0]] * count
        p = self.params
        settings = [p.temperature, float(p.top_k), p.top_p, p.min_p]
        return [[*settings, number] for number in self._numbers.next(count)]

    def chosen(self, token: int) -> None:
        """``token`` was taken, by the first of ``rows``.

        Raises:
            RuntimeError: it is no token: the logits were no numbers.
        """
        if token < 0:
            raise RuntimeError("the model's logits are no numbers")
        if self._numbers is not None:
            self._numbers.skip()
        if self._seen is not None:
            self._seen[token] = True
        if self._constraint is not None:
            self._constraint.advance(token)

    def fork(self) -> Sampler:
        """One that will draw what this one would, while this one stays where it is."""
        other = copy.copy(self)
        if self._numbers is not None:
            other._numbers = self._numbers.fork()
        if self._seen is not None:
            other._seen = self._seen.clone()
        if self._constraint is not None:
            other._constraint = self._constraint.fork()
        return other

    def __call__(self, logits: Tensor) -> int:
        """The next token for ``logits [vocabulary]``."""
        scores = logits.detach()
        if not self.plain:
            scores = self._adjusted(scores.float().cpu())
        [token] = sample_rows(scores[None], self.rows(1))
        self.chosen(token)
        return token

    def _adjusted(self, scores: Tensor) -> Tensor:
        if self._seen is not None:
            penalty = self.params.repetition_penalty
            scores = torch.where(
                self._seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores
            )
        if self._constraint is not None:
            # Of tokens that the model rules out, one that is allowed is still the better.
            scores = scores.clamp(min=_LEAST).masked_fill(~self._constraint.mask(), -torch.inf)
        return scores


def sample_rows(logits: Tensor, rows: Sequence[Sequence[float]]) -> list[int]:
    """A token for each row of ``logits [N, vocabulary]``, drawn as ``Sampler.rows`` says, where they lie.

    -1 where logits are no numbers.
    """
    if not any(row[0] for row in rows):
        return likeliest(logits).tolist()
    return drawn(logits, torch.tensor(rows).T.contiguous().to(logits.device)).tolist()


def likeliest(logits: Tensor) -> Tensor:
    """The likeliest token of each row, the first of several; -1 where logits are no numbers."""
    values, tokens = logits.max(-1)  # where there is a NaN, it is that
    return torch.where(values.isfinite(), tokens, -1)


def drawn(logits: Tensor, how: Tensor) -> Tensor:
    """A token for each row by float32 ``[SETTINGS + 1, N]``: settings, and a number for each row.

    -1 where logits are no numbers.
    """
    temperature, top_k, top_p, min_p, number = how
    tokens, logprobs = ops.sample(logits, temperature, top_k.int(), top_p, min_p, number)
    return torch.where(logprobs.isfinite(), tokens, -1)


def logprob_of(logits: Tensor, token: int, count: int) -> TokenLogprob:
    """The log-probability of ``token`` and those of the ``count`` likeliest, for ``logits [vocabulary]``."""
    scores = logits.detach().float().cpu().log_softmax(-1)
    values, ids = scores.topk(min(count, len(scores)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(scores[token]), top)
