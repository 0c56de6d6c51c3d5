"""The sampler against transformers' logits processors, and its parameters against nonsense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from afnext.engine import GenerationParams
from afnext.engine.sampler import Sampler, sample_rows

VOCABULARY = 50


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0, 1, 3, 20, 100]),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([1.0, 1.2, 2.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_samples_from_transformers_distribution(
    seed: int, top_k: int, top_p: float, min_p: float, penalty: float, temperature: float
) -> None:
    """Every sampled token has probability in transformers' distribution, and the draws follow it."""
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    prompt = [1, 5, 5, 9]
    processors = LogitsProcessorList()
    if penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    if min_p:
        processors.append(MinPLogitsWarper(min_p))
    expected = processors(torch.tensor([prompt]), logits[None].clone())[0].softmax(-1)
    params = GenerationParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=penalty, seed=seed,
    )  # fmt: skip
    counts = torch.zeros(VOCABULARY)
    for draw in range(200):
        one = Sampler(
            GenerationParams(**{**_fields(params), "seed": seed + draw}), prompt, VOCABULARY
        )
        counts[one(logits)] += 1
    assert (expected[counts > 0] > 0).all()
    # 200 draws: a share is within 5 standard deviations of its probability.
    deviation = (expected * (1 - expected) / 200).sqrt()
    assert ((counts / 200 - expected).abs() <= 5 * deviation + 0.02).all()


def _fields(params: GenerationParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in params.__dataclass_fields__}


def test_greedy_ignores_the_filters_and_counts_repetition() -> None:
    logits = torch.tensor([3.0, 2.9, -1.0])
    assert Sampler(GenerationParams(), [0], 3)(logits) == 0
    sampler = Sampler(GenerationParams(repetition_penalty=1.5), [0], 3)
    assert sampler(logits) == 1  # 3.0 / 1.5 < 2.9
    assert sampler(logits) == 0  # 2.9 / 1.5 < 2.0: what was just said counts too


def test_rows_say_what_the_sampler_will_draw() -> None:
    logits = torch.randn(40, VOCABULARY, generator=torch.Generator().manual_seed(1))
    params = GenerationParams(temperature=1.3, top_k=30, seed=5)
    sampler, together = (Sampler(params, [], VOCABULARY) for _ in range(2))
    one_by_one = [sampler(row) for row in logits]
    assert sample_rows(logits, together.rows(40)) == one_by_one
    assert len(set(one_by_one)) > 10
    # Those that were not taken are drawn again, also by a fork.
    for token in one_by_one[:17]:
        together.chosen(token)
    assert sample_rows(logits[17:30], together.fork().rows(13)) == one_by_one[17:30]
    assert [together(row) for row in logits[17:]] == one_by_one[17:]
    plain = Sampler(GenerationParams(), [], VOCABULARY)
    mixed = sample_rows(logits[:2], [*plain.rows(1), *Sampler(params, [], VOCABULARY).rows(1)])
    assert mixed[0] == int(logits[0].argmax())


def test_what_is_no_number_is_not_drawn_from() -> None:
    sampler = Sampler(GenerationParams(temperature=1.0, seed=0), [], 4)
    with pytest.raises(RuntimeError, match="no numbers"):
        sampler(torch.full((4,), torch.nan))
    assert sampler(torch.tensor([torch.nan, -torch.inf, 0.0, torch.nan])) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 1.5), ("temperature", -0.1), ("temperature", float("nan")),
        ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("min_p", 1.0), ("repetition_penalty", 0.0),
        ("seed", -1), ("seed", 2**63), ("stop", ("",)), ("stop", (3,)), ("temperature", "hot"),
        ("temperature", True), ("seed", True),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        GenerationParams(**{name: value})
