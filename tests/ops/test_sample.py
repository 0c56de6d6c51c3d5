"""sample: cuts and draws against float64 and transformers' warpers, ties, extremes, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from afnext import ops
from tests.cuda.cases.sample import PARAMS, assert_drawn


def settings(rows: int, params: tuple[float, int, float, float]) -> tuple[Tensor, ...]:
    temperature, top_k, top_p, min_p = params
    return (
        torch.full((rows,), temperature),
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p),
        torch.full((rows,), min_p),
    )


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_as_float64(
    backend: str, dtype: torch.dtype, params: tuple[float, int, float, float]
) -> None:
    logits = (torch.randn(6, 2003) * 3).to(dtype)
    uniform = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.999, 1 - 2**-24])
    tokens, logprobs = ops.sample(logits, *settings(6, params), uniform)
    assert (tokens.dtype, logprobs.dtype) == (torch.int64, torch.float32)
    for row in range(6):
        assert_drawn(
            logits[row], params, uniform[row].item(), int(tokens[row]), logprobs[row].item()
        )


def test_keeps_what_transformers_keeps(backend: str) -> None:
    """Over even steps of uniform: the tokens that its warpers leave, each as often as it should."""
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(1, 60) * 2
    chain = (
        warpers.TemperatureLogitsWarper(1.2),
        warpers.TopKLogitsWarper(20),
        warpers.TopPLogitsWarper(0.9),
        warpers.MinPLogitsWarper(0.05),
    )
    scores = logits
    for warper in chain:
        scores = warper(None, scores)
    steps = 4000
    uniform = (torch.arange(steps) + 0.5) / steps
    tokens, _ = ops.sample(
        logits.expand(steps, 60), *settings(steps, (1.2, 20, 0.9, 0.05)), uniform
    )
    share = torch.bincount(tokens, minlength=60) / steps
    # A step more or less at either end of a token's stretch.
    torch.testing.assert_close(share, scores[0].softmax(-1), rtol=0, atol=1.1 / steps)


def test_equals_are_kept_together_and_drawn_by_id(backend: str) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0]]).expand(5, 6)
    uniform = torch.tensor([0.0, 0.4, 0.7, 0.8, 0.99])
    tokens, _ = ops.sample(logits, *settings(5, (1.0, 3, 1.0, 0.0)), uniform)
    assert tokens.tolist() == [1, 3, 2, 4, 5]  # shares 2 x 0.322, 3 x 0.119
    assert ops.sample(logits, *settings(5, (0.0, 0, 1.0, 0.0)), uniform)[0].tolist() == [1] * 5


def test_greedy_takes_the_largest_however_near_others_are(backend: str) -> None:
    logits = torch.full((1, 40), 1e-3)
    logits[0, 17] = torch.nextafter(torch.tensor(1e-3), torch.tensor(1.0))
    tokens, _ = ops.sample(logits, *settings(1, (0.0, 0, 1.0, 0.0)), torch.zeros(1))
    assert tokens.tolist() == [17]


def test_a_row_does_not_depend_on_its_batch(backend: str) -> None:
    logits, uniform = torch.randn(7, 333) * 2, torch.rand(7)
    args = settings(7, (1.0, 50, 0.9, 0.01))
    together = ops.sample(logits, *args, uniform)
    for r in range(7):
        alone = ops.sample(logits[r : r + 1], *(a[r : r + 1] for a in args), uniform[r : r + 1])
        assert torch.equal(alone[0], together[0][r : r + 1])
        assert torch.equal(alone[1], together[1][r : r + 1])


def test_infinite_logits(backend: str) -> None:
    """-inf is never drawn, not even with uniform at its end; a row of one finite logit gives that."""
    logits = torch.full((2, 50), -torch.inf)
    logits[0, 31] = -4.0
    logits[1, 3:5] = 2.0
    uniform = torch.tensor([1 - 2**-24, 1 - 2**-24])
    tokens, logprobs = ops.sample(logits, *settings(2, (1.0, 0, 1.0, 0.0)), uniform)
    assert tokens.tolist() == [31, 4]
    torch.testing.assert_close(logprobs, torch.tensor([0.0, -0.6931472]), rtol=1e-6, atol=1e-7)


def test_no_rows(backend: str) -> None:
    tokens, logprobs = ops.sample(
        torch.zeros(0, 5), *settings(0, (1.0, 0, 1.0, 0.0)), torch.zeros(0)
    )
    assert (tokens.shape, logprobs.shape) == ((0,), (0,))


@pytest.mark.parametrize(
    ("index", "value", "named"),
    [
        (0, torch.zeros(2, 5, dtype=torch.float64), "logits"),
        (0, torch.zeros(5), "logits"),
        (0, torch.zeros(2, 0), "logits"),
        (1, torch.zeros(3), "temperature"),
        (2, torch.zeros(2, dtype=torch.int64), "top_k"),
        (3, torch.zeros(2, dtype=torch.float64), "top_p"),
        (4, torch.zeros(2, 1), "min_p"),
        (5, torch.zeros(2, device="meta"), "uniform"),
    ],
)
def test_bad_input_names_the_argument(backend: str, index: int, value: Tensor, named: str) -> None:
    inputs = [torch.zeros(2, 5), *settings(2, (1.0, 0, 1.0, 0.0)), torch.zeros(2)]
    inputs[index] = value
    with pytest.raises(ValueError, match=f"sample: {named}"):
        ops.sample(*inputs)


def test_opcheck() -> None:
    args = (torch.randn(2, 9), *settings(2, (1.0, 3, 0.9, 0.0)), torch.rand(2))
    torch.library.opcheck(torch.ops.afnext.sample.default, args)
