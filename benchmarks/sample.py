"""A token drawn from 152,064 logits beside transformers' warpers with torch's multinomial."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from afnext import ops

from .case import Case

VOCABULARY = 152_064
SETTINGS = ((0.7, 0, 0.95), (0.7, 20, 0.8), (1.0, 0, 1.0))  # temperature, top_k, top_p


def warpers(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    """As ``generate`` makes them."""
    made = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        made.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        made.append(TopPLogitsWarper(top_p))
    return made


def drawn(rows: int, temperature: float, top_k: int, top_p: float) -> Case:
    """Logits of a model that hesitates among some hundreds of tokens; they stay in the caches."""
    logits = 3.0 * torch.randn(rows, VOCABULARY)
    settings = (
        torch.full((rows,), temperature),
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p),
        torch.zeros(rows),
    )
    ids = torch.empty(rows, 0, dtype=torch.int64)
    warp: Any = warpers(temperature, top_k, top_p)

    def theirs() -> Tensor:
        return torch.multinomial(warp(ids, logits.clone()).softmax(-1), 1)

    def check() -> None:
        tokens, _ = ops.sample(logits, *settings, torch.rand(rows))
        kept = warp(ids, logits.clone()).gather(1, tokens[:, None])
        assert kept.isfinite().all(), "a token was drawn that transformers rules out"

    return Case(
        f"[{rows}, {VOCABULARY}] float32, temperature {temperature}, top_k {top_k}, top_p {top_p}",
        label="ops.sample",
        ours=lambda: ops.sample(logits, *settings, torch.rand(rows)),
        peers={"transformers": theirs},
        dtype="float32",
        check=check,
    )


def cases() -> Iterator[Case]:
    """One answer by three settings, and eight at once."""
    for settings in SETTINGS:
        yield drawn(1, *settings)
    yield drawn(8, *SETTINGS[0])
