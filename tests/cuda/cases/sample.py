"""Sampling: every cut alone and together, draws at both ends, ties, infinities, rows apart."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tests.cuda.harness import FLOATS, Case, Kernels, generator

# temperature, top_k, top_p, min_p: a row each
PARAMS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 0, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.05),
    (0.9, 40, 0.95, 0.02),
    (1.5, 300, 0.5, 0.3),
    (1.0, 1, 1.0, 0.0),
    (1.0, 0, 1e-6, 0.0),
    (1e-3, 10**9, 0.999, 1.0),
]


def kept_weights(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """float64 probabilities after the cuts, up to a factor; ties at a cut stay together."""
    weights = (logits - logits.max()).exp()
    if top_k > 0:
        weights[logits < logits.topk(min(top_k, len(logits))).values[-1]] = 0
    if top_p < 1:
        ordered, _ = weights.sort(descending=True)
        before = ordered.cumsum(0) - ordered
        last = ordered[before < torch.tensor(top_p, dtype=torch.float32).double() * ordered.sum()][
            -1
        ]
        weights[weights < last] = 0
    weights[weights < torch.tensor(min_p, dtype=torch.float32).double()] = 0
    return weights


def assert_drawn(logits: Tensor, params: tuple[float, int, float, float], uniform: float,
                 token: int, logprob: float) -> None:  # fmt: skip
    """``token`` lies where ``uniform`` of the kept tokens' mass is reached, the likeliest first."""
    temperature, top_k, top_p, min_p = params
    x = logits.double().nan_to_num(nan=-torch.inf)
    if temperature == 0:
        assert token == int(x.argmax())
        assert x.numel() < 2 or int((x[:token] == x[token]).sum()) == 0
    else:
        x = x / torch.tensor(temperature, dtype=torch.float32).double()
        weights = kept_weights(x, top_k, top_p, min_p)
        assert weights[token] > 0, f"token {token} was cut"
        ordered, order = torch.sort(weights, descending=True, stable=True)
        after = ordered.cumsum(0) / ordered.sum()
        place = int((order == token).nonzero())
        # exp in float32 and masses in 40 bits; and logits that are neighbours in float32, or fall
        # together when it divides them, come in either order.
        alike = (x - x[token]).abs() <= 2.0**-22 * max(1.0, x[token].abs().item())
        slack = 2e-6 + float((weights[alike].sum() - weights[token]) / ordered.sum())
        before = after[place] - ordered[place] / ordered.sum()
        assert before - slack <= uniform <= after[place] + slack
    exact = x[token] - torch.logsumexp(x, 0)
    assert abs(logprob - exact.item()) <= 2e-6 * (1 + abs(exact.item()))


def run(
    name: str, dtype: torch.dtype, width: int, gap: int, spread: float, kernels: Kernels
) -> None:
    random = generator(name)
    rows = len(PARAMS)
    logits = (torch.randn(rows, width + gap, generator=random) * spread).to(dtype)[:, :width]
    if width > 100:
        logits[:, 7] = -torch.inf
        logits[:, 8] = torch.nan
    uniform = torch.rand(rows, generator=random)
    uniform[1], uniform[2] = 0.0, 1 - 2**-24
    columns = list(zip(*PARAMS, strict=True))
    numbers = [torch.tensor(columns[i], dtype=torch.float32) for i in (0, 2, 3)]
    tokens = kernels.empty(rows, dtype=torch.int64)
    logprobs = kernels.empty(rows, dtype=torch.float32)
    kernels.compiled.sample(
        kernels.put(logits),
        kernels.put(numbers[0]),
        kernels.put(torch.tensor(columns[1], dtype=torch.int32)),
        kernels.put(numbers[1]),
        kernels.put(numbers[2]),
        kernels.put(uniform),
        tokens,
        logprobs,
    )
    drawn, told = kernels.get(tokens).tolist(), kernels.get(logprobs).tolist()
    for row, params in enumerate(PARAMS):
        assert_drawn(logits[row], params, uniform[row].item(), drawn[row], told[row])


def _cases() -> list[Case]:
    made = []
    for dtype in FLOATS:
        for width, gap, spread, core in [
            (1000, 0, 3.0, True),
            (517, 3, 3.0, True),  # nothing is aligned
            (1, 0, 1.0, True),
            (264, 0, 0.0, True),  # all equal: every search goes to the last digit
            (4104, 8, 8.0, False),
            (20000, 0, 1e-4, False),  # all in a bin or two
            (151672, 0, 2.5, False),
        ]:
            kind = str(dtype).removeprefix("torch.")
            name = f"{kind}-{width}-spread{spread:g}{f'-gap{gap}' if gap else ''}"
            made.append(Case(name, partial(run, name, dtype, width, gap, spread), core))
    return made


CASES = _cases()
