"""Greedy answers to many questions at once: clips of one length share a batch, questions share audio."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afnext.model import AudioLanguageModel
from afnext.training import forward
from afnext.training.data import Batch, Packed, Vocabulary, count_tokens, features


class Listener:
    """Clips of one length that have been heard: their keys and values, ready for questions."""

    def __init__(
        self, net: AudioLanguageModel, vocab: Vocabulary, samples: NDArray[np.int16]
    ) -> None:
        self.net, self.vocab, self.rows = net, vocab, len(samples)
        nothing = torch.zeros(0, dtype=torch.long)
        text = Packed(nothing, nothing, nothing, nothing, nothing, [])
        tokens, prefix = count_tokens(samples.shape[1]), torch.tensor(vocab.prefix)
        batch = Batch(0.0, features(samples), [], text, prefix, tokens)
        with torch.no_grad():
            audio = forward.adapt(net, forward.encode(net, batch))
            start = self._embed(prefix).expand(self.rows, -1, -1)
            x = torch.cat((start, audio), 1)
            self.length = x.shape[1]
            self.cache: forward.Cache = []
            causal = torch.full((self.length, self.length), -torch.inf).triu(1)
            positions = torch.arange(self.length).expand(self.rows, -1)
            forward.decode(net, x, positions, causal, self.cache)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.net.language_model.model.embed_tokens(ids)

    @torch.no_grad()
    def ask(self, questions: Sequence[str], longest: int = 160) -> list[str]:
        """One question for each clip; the answers without their end marker."""
        asked = [(*self.vocab.close, *self.vocab.question(q)) for q in questions]
        width = max(map(len, asked))
        gaps = torch.tensor([width - len(a) for a in asked])
        ids = torch.tensor([[0] * (width - len(a)) + list(a) for a in asked])
        column = torch.arange(width)
        positions = (self.length + column - gaps[:, None]).clamp(min=0)
        hidden = (column < gaps[:, None])[:, None, None]  # left padding, unseen as keys
        bias = torch.zeros(self.rows, 1, width, self.length + width)
        bias[..., self.length :].masked_fill_(hidden, -1e9)
        bias[..., self.length :] += torch.full((width, width), -1e9).triu(1)
        cache = list(self.cache)
        end = self.vocab.encode("<|im_end|>")[0]
        answers: list[list[int]] = [[] for _ in questions]
        open_rows = torch.ones(self.rows, dtype=torch.bool)
        x = forward.decode(self.net, self._embed(ids), positions, bias, cache)
        for step in range(longest):
            token = self.net.language_model.lm_head(x[:, -1]).argmax(-1)
            open_rows &= token != end
            for row in open_rows.nonzero()[:, 0].tolist():
                answers[row].append(int(token[row]))
            if not open_rows.any():
                break
            position = (self.length + width + step - gaps)[:, None]
            bias = torch.zeros(self.rows, 1, 1, self.length + width + step + 1)
            bias[..., self.length : self.length + width].masked_fill_(hidden, -1e9)
            x = forward.decode(self.net, self._embed(token[:, None]), position, bias, cache)
        return [self.vocab.tokenizer.decode(a, skip_special_tokens=False) for a in answers]
