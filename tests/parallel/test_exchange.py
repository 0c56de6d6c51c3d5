"""Rows between ranks arrive, and their gradients come back; without autograd they would be lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from afnext.parallel.exchange import RowExchange
from tests.parallel.processes import spawn

OWNED = (3, 0, 4)
WANTED = ((6, 0, 0, 5), (1, 2, 3, 3, 6), ())


def exchange() -> RowExchange:
    return RowExchange(OWNED, [torch.tensor(rows, dtype=torch.int64) for rows in WANTED])


def moved(exchange: RowExchange, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    return exchange(rows, group)


def summed(exchange: RowExchange, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """As published: every rank writes its rows into a table of zeros, and an all-reduce that autograd does
    not know adds the tables up. The values are right; of a row's gradient what other ranks used is missing.
    """
    rank = dist.get_rank()
    first = sum(OWNED[:rank])
    table = torch.cat(
        (rows.new_zeros(first, 2), rows, rows.new_zeros(sum(OWNED) - first - len(rows), 2))
    )
    dist.all_reduce(table.data, group=group)
    return table[exchange.wanted[rank]]


def gradient(way: Callable[..., Tensor]) -> tuple[list, list]:
    """The rows that this rank gets, and the gradient of the one weight behind all rows, over all ranks."""
    rank = dist.get_rank()
    first, group = sum(OWNED[:rank]), dist.group.WORLD
    assert group is not None
    weight = torch.ones(2, requires_grad=True)
    inputs = torch.arange(first, first + OWNED[rank], dtype=torch.float32)[:, None] + 1
    got = way(exchange(), inputs * weight, group)
    scale = torch.arange(1.0, 1 + len(got))[:, None]
    (got * scale).sum().backward()
    grad = torch.zeros(2) if weight.grad is None else weight.grad
    dist.all_reduce(grad)
    return got.tolist(), grad.tolist()


def expected() -> tuple[list[list[list[float]]], list[float]]:
    rows = [[[row + 1.0] * 2 for row in part] for part in WANTED]
    total = sum((i + 1) * (row + 1.0) for part in WANTED for i, row in enumerate(part))
    return rows, [total] * 2


@pytest.mark.slow
def test_rows_arrive_and_gradients_come_back() -> None:
    rows, grad = expected()
    for rank, (got, found) in enumerate(spawn(3, gradient, moved)):
        assert got == rows[rank]
        assert found == grad


@pytest.mark.slow
def test_the_published_reshard_loses_gradients() -> None:
    """The bug put back: the values are the same, the gradient is not, and the check sees it."""
    rows, grad = expected()
    for rank, (got, found) in enumerate(spawn(3, gradient, summed)):
        assert got == rows[rank]
        assert found[0] < grad[0]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="owned is of 2 ranks, wanted of 1"):
        RowExchange([1, 2], [torch.tensor([0])])
    with pytest.raises(ValueError, match=r"wanted\[1\] must be rows 0 to 2"):
        RowExchange([1, 2], [torch.tensor([0]), torch.tensor([3])])
