"""Cases of ``sample`` and of ``all_to_all``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from afnext.ops import reference
from tests.cpp.calls import DTYPES, Call, Output, label, randn

RANKS = {
    "two ranks": ([0, 2, 4], [0, 1, 2, 3]),
    "uneven": ([0, 1, 4], [0, 1, 2, 3]),
    "a rank without heads": ([0, 0, 4], [3, 2, 1, 0]),
    "a head of two ranks": ([0, 2, 4, 5], [0, 1, 1, 2, 3]),
}


def sample() -> Iterator[Call]:
    """Logits are multiples of 1/8 whose ties are exact, so that tokens do not hang on a rounding."""

    def make(
        name: str, logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
    ) -> Call:
        rows = len(logits)
        cuts = (
            torch.full((rows,), temperature), torch.full((rows,), top_k, dtype=torch.int32),
            torch.full((rows,), top_p), torch.full((rows,), min_p), (torch.arange(rows) + 0.37) / rows,
        )  # fmt: skip
        tokens, logprobs = reference.sample(logits, *cuts, torch.float64)
        names = ("temperature", "top_k", "top_p", "min_p", "uniform")
        return Call(
            name,
            {"logits": logits, **dict(zip(names, cuts, strict=True))},
            {"tokens": Output(tokens, torch.int64), "logprobs": Output(logprobs, torch.float32)},
        )

    for dtype in DTYPES:
        for rows, vocabulary in [(1, 1), (3, 50), (7, 1633), (0, 20)]:
            logits = ((randn(rows, vocabulary) * 16).round() / 8).to(dtype)
            name = f"{rows} of {vocabulary} {label(dtype)}"
            yield make(f"{name} greedy", logits, 0.0, 0, 1.0, 0.0)
            yield make(f"{name} all", logits, 0.7, 0, 1.0, 0.0)
            yield make(f"{name} top k", logits, 1.0, 5, 1.0, 0.0)
            yield make(f"{name} top p", logits, 1.3, 0, 0.8, 0.0)
            yield make(f"{name} min p", logits, 1.0, 40, 0.95, 0.1)
        wide = ((randn(4, 90) * 16).round() / 8).to(dtype)
        yield make(f"rows apart {label(dtype)}", wide[:, 7:67], 1.0, 9, 0.9, 0.0)
    call = make("misuse", randn(3, 8), 1.0, 0, 1.0, 0.0)
    yield call.misused("temperature", temperature=torch.ones(2))
    yield call.misused("top_k", top_k=torch.ones(3))
    yield call.misused("logits", logits=randn(3, 8).double())


def _shards(offsets: list[int], heads: list[int]) -> dict[str, Tensor]:
    return {"head_offsets": torch.tensor(offsets), "head_order": torch.tensor(heads)}


def all_to_all_pack() -> Iterator[Call]:
    for dtype in DTYPES:
        for name, (offsets, heads) in RANKS.items():
            for tokens, dim in [(1, 1), (5, 24), (0, 8)]:
                x = randn(tokens, 4, 2 * dim, dtype=dtype)[..., :dim]
                out = reference.all_to_all_pack(x.double(), offsets, heads)
                inputs = {"x": x, **_shards(offsets, heads)}
                yield Call(
                    f"{name} {tokens} x {dim} {label(dtype)}", inputs, {"out": Output(out, dtype)}
                )
    call = Call("misuse", {"x": randn(2, 4, 8), **_shards([0, 4], [0, 1, 2, 3])},
                {"out": Output(randn(8, 8).double(), torch.float32)})  # fmt: skip
    yield call.misused("heads", head_order=torch.tensor([0, 1, 2, 4]))
    yield call.misused("out", out=randn(7, 8))


def all_to_all_unpack() -> Iterator[Call]:
    for dtype in DTYPES:
        for name, (offsets, heads) in RANKS.items():
            for tokens, dim in [(1, 1), (5, 24), (0, 8)]:
                x = randn(tokens * offsets[-1], dim, dtype=dtype)
                out = reference.all_to_all_unpack(x, offsets, heads, tokens, 4, torch.float64)
                inputs = {"x": x, **_shards(offsets, heads)}
                result = Output(out.double(), dtype)
                yield Call(f"{name} {tokens} x {dim} {label(dtype)}", inputs, {"out": result})
    call = Call("misuse", {"x": randn(8, 8), **_shards([0, 4], [0, 1, 2, 3])},
                {"out": Output(randn(2, 4, 8).double(), torch.float32)})  # fmt: skip
    yield call.misused("x", x=randn(7, 8))
