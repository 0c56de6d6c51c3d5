"""What a captured graph can hold: calls that the host tells nothing, and a plan that was told before. Others
are refused, instead of leaving a graph that reads the host's memory after it was freed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.cuda.cases.paged_cache import filled_pages, int32, offsets
from tests.cuda.harness import Kernels, generator

pytestmark = pytest.mark.slow

REFUSED = "told its sequences by the host.*outside of the capture"


@contextmanager
def capture(kernels: Kernels) -> Iterator[None]:
    kernels.compiled.set_emulated_capture(True)
    try:
        yield
    finally:
        kernels.compiled.set_emulated_capture(False)


def attend(kernels: Kernels, lengths: list[int], sm: int) -> torch.Tensor:
    kernels.compiled.set_emulated_device(sm)
    try:
        tokens, cu = sum(lengths), offsets(lengths) if len(lengths) > 1 else None
        x = torch.randn(tokens, 2, 64, generator=generator("capture")).bfloat16()
        out = kernels.empty(tokens, 2, 64, dtype=torch.bfloat16)
        lse = kernels.empty(2, tokens, dtype=torch.float32)
        arrays = [kernels.put(x) for _ in range(3)]
        policies = (None, None, None, False, True, -1, -1, 0.125)
        kernels.compiled.attention(*arrays, cu, cu, None, *policies, out, lse)
        return kernels.get(out)
    finally:
        kernels.compiled.set_emulated_device(90)


@pytest.mark.parametrize("sm", [80, 90])
def test_attention_of_one_sequence_is_captured_of_several_refused(
    kernels: Kernels, sm: int
) -> None:
    wanted = attend(kernels, [9], sm)
    with capture(kernels):
        assert torch.equal(attend(kernels, [9], sm), wanted)
        with pytest.raises(RuntimeError, match=f"attention: .*{REFUSED}"):
            attend(kernels, [4, 5], sm)
    attend(kernels, [4, 5], sm)


@pytest.mark.parametrize("sm", [80, 90])
def test_attention_backward_is_refused(kernels: Kernels, sm: int) -> None:
    x = torch.randn(9, 2, 64, generator=generator("capture")).bfloat16()

    def differentiate() -> list[Any]:
        grads = [kernels.empty(9, 2, 64, dtype=torch.bfloat16) for _ in range(3)]
        q, k, v, out, grad = (kernels.put(x) for _ in range(5))
        kernels.compiled.attention_backward(
            grad, None, q, k, v, out, kernels.put(torch.full((2, 9), 3.0)), None, None, None, None, None,
            None, False, True, -1, -1, 0.125, *grads,
        )  # fmt: skip
        return grads

    kernels.compiled.set_emulated_device(sm)
    try:
        with (
            capture(kernels),
            pytest.raises(RuntimeError, match=f"attention_backward: .*{REFUSED}"),
        ):
            differentiate()
        assert all(kernels.get(grad).isfinite().all() for grad in differentiate())
    finally:
        kernels.compiled.set_emulated_device(90)


def test_a_plan_is_told_outside_and_runs_within(kernels: Kernels) -> None:
    random = generator("plan")
    pages = filled_pages(random, [5, 20], 2, 16, 64, torch.bfloat16)
    x = torch.randn(2, 2, 64, generator=random).bfloat16()
    keys, values = kernels.put(pages.k), kernels.put(pages.v)
    plan = kernels.compiled.PagedAttentionPlan(keys, 2, 2, 4, 2, 4, 8, True, -1, -1)

    def run() -> torch.Tensor:
        out = kernels.empty(2, 2, 64, dtype=torch.bfloat16)
        lse = kernels.empty(2, 2, dtype=torch.float32)
        new = kernels.put(x)
        plan.append(new, new, keys, values, None, None, False, None, None)
        plan.attend(new, keys, values, None, None, False, 0.125, None, None, out, lse)
        return kernels.get(out)

    told = (keys, pages.table, offsets([1, 1]), int32(pages.lengths))
    plan.update(*told)
    wanted = run()
    with capture(kernels):
        assert torch.equal(run(), wanted)
        with pytest.raises(RuntimeError, match=f"paged_plan: .*{REFUSED}"):
            plan.update(*told)
        with pytest.raises(RuntimeError, match=f"paged_append: .*{REFUSED}"):
            kernels.compiled.paged_append(
                kernels.put(x), kernels.put(x), keys, values, pages.table, offsets([1, 1]),
                int32([4, 19]), None, None, False, None, None,
            )  # fmt: skip
    plan.update(*told)
    assert torch.equal(run(), wanted)


def test_nothing_else_knows_of_captures(kernels: Kernels) -> None:
    """An op whose calls carry all that they need."""
    x, ones = kernels.put(torch.ones(2, 8)), kernels.put(torch.ones(8))
    out = kernels.empty(2, 8, dtype=torch.float32)
    with capture(kernels):
        kernels.compiled.rms_norm(x, None, ones, 0.0, out, None)
    torch.testing.assert_close(kernels.get(out), torch.ones(2, 8))
