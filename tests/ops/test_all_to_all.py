"""all_to_all_pack and all_to_all_unpack: against indexing, Ulysses in one process, gradients, bad input."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from afnext import ops
from tests.cuda.cases.all_to_all import SHARDS, packed, summed


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "dim"), [(9, 128), (1, 1), (4, 21), (0, 8)])
def test_matches_indexing(
    backend: str, kind: str, dtype: torch.dtype, tokens: int, dim: int
) -> None:
    offsets, heads, count = SHARDS[kind]
    x = torch.randn(tokens, count, 2 * dim).to(dtype)[:, :, :dim]
    sent = ops.all_to_all_pack(x, offsets, heads)
    parts = packed(x, offsets, heads)
    assert torch.equal(sent, torch.cat([part.flatten(0, 1) for part in parts]))
    back = ops.all_to_all_unpack(sent, offsets, heads, count)
    # Every head comes back as often as ranks have it: once is exact, twice too.
    assert torch.equal(back.double(), summed(parts, offsets, heads, count))


def test_a_sum_is_rounded_once(backend: str) -> None:
    x = torch.tensor([[1.0], [2.0**-8], [2.0**-8]]).bfloat16()
    out = ops.all_to_all_unpack(x, [0, 1, 2, 3], [0, 0, 0])
    assert out.item() == 1.0 + 2.0**-7  # 1 + 2**-8 alone rounds to 1


def exchange(sent: list[list[Tensor]]) -> list[list[Tensor]]:
    """What each rank receives, of what each has for each."""
    return [[sent[source][rank] for source in range(len(sent))] for rank in range(len(sent))]


def test_attention_of_ranks_is_attention_of_one(backend: str) -> None:
    """Ulysses with 3 ranks of 5, 9 and 2 tokens, 4 query heads (2, 1, 1) and 2 key heads, of which
    one goes to two ranks: outputs and gradients of all ranks together are those of one."""
    lengths, q_offsets, kv_offsets, kv_heads = [5, 9, 2], [0, 2, 3, 4], [0, 1, 2, 3], [0, 1, 1]
    q = torch.randn(16, 4, 8, requires_grad=True)
    k, v = (torch.randn(16, 2, 8, requires_grad=True) for _ in range(2))
    expected = ops.attention(q, k, v, causal=True)[0]

    def to_heads(x: Tensor, offsets: list[int], heads: list[int] | None) -> list[Tensor]:
        sent = []
        for local in x.split(lengths):
            packed_local = ops.all_to_all_pack(local, offsets, heads)
            counts = [b - a for a, b in pairwise(offsets)]
            pieces = packed_local.split([len(local) * n for n in counts])
            sent.append([p.reshape(len(local), n, 8) for p, n in zip(pieces, counts, strict=True)])
        return [torch.cat(received) for received in exchange(sent)]

    mine = [
        ops.attention(*of_rank, causal=True)[0]
        for of_rank in zip(
            to_heads(q, q_offsets, None),
            to_heads(k, kv_offsets, kv_heads),
            to_heads(v, kv_offsets, kv_heads),
            strict=True,
        )
    ]
    received = exchange([list(out.split(lengths)) for out in mine])
    outs = [
        ops.all_to_all_unpack(torch.cat([part.flatten(0, 1) for part in parts]), q_offsets)
        for parts in received
    ]
    out = torch.cat(outs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(out, (q, k, v), grad)
    theirs = torch.autograd.grad(expected, (q, k, v), grad)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SHARDS)
def test_gradients_are_the_other_move(backend: str, kind: str) -> None:
    offsets, heads, count = SHARDS[kind]
    x = torch.randn(5, count, 12, requires_grad=True)
    grad = torch.randn(5 * len(heads), 12)
    (dx,) = torch.autograd.grad(ops.all_to_all_pack(x, offsets, heads), x, grad)
    parts = [grad[5 * a : 5 * b].reshape(5, b - a, 12) for a, b in pairwise(offsets)]
    torch.testing.assert_close(
        dx.double(), summed(parts, offsets, heads, count), rtol=1e-6, atol=1e-6
    )
    y = grad.requires_grad_()
    back = torch.randn(5, count, 12)
    (dy,) = torch.autograd.grad(ops.all_to_all_unpack(y, offsets, heads, count), y, back)
    assert torch.equal(dy, torch.cat([p.flatten(0, 1) for p in packed(back, offsets, heads)]))


@pytest.mark.parametrize(
    ("offsets", "heads", "said"),
    [
        ([0], [], "head_offsets must be of 1 to 64 ranks"),
        ([0, 2, 1, 3], [0, 1, 2], "head_offsets must rise from 0 to 3 without falling"),
        ([0, 2], [0, 1, 2], "head_offsets must rise from 0 to 3 without falling"),
        ([0, 2], [0, 3], "heads names head 3 of 3"),
        ([0, 2], [0, -1], "heads names head -1 of 3"),
        ([0, 400], [0] * 400, "at most 384 heads are supported"),
    ],
)
def test_bad_shards_name_what_is_wrong(
    backend: str, offsets: list[int], heads: list[int], said: str
) -> None:
    with pytest.raises(ValueError, match=f"^all_to_all_pack: {said}$"):
        ops.all_to_all_pack(torch.zeros(2, 3, 8), offsets, heads)


def test_bad_input_names_the_argument(backend: str) -> None:
    for x in (torch.zeros(2, 3), torch.zeros(2, 3, 4, dtype=torch.float64)):
        with pytest.raises(ValueError, match="all_to_all_pack: x must"):
            ops.all_to_all_pack(x, [0, 1], [0])
    for x in (torch.zeros(7, 4), torch.zeros(6), torch.zeros(6, 4, dtype=torch.float64)):
        with pytest.raises(ValueError, match="all_to_all_unpack: x must"):
            ops.all_to_all_unpack(x, [0, 1, 3])
    with pytest.raises(ValueError, match="all_to_all_unpack: heads names head 2 of 2"):
        ops.all_to_all_unpack(torch.zeros(6, 4), [0, 1, 3], num_heads=2)


def test_opcheck() -> None:
    offsets, heads, count = SHARDS["shared"]
    x = torch.randn(3, count, 8, requires_grad=True)
    torch.library.opcheck(torch.ops.afnext.all_to_all_pack.default, (x, offsets, heads))
    y = torch.randn(12, 8, requires_grad=True)
    args = (y, offsets, heads, 3, count)
    torch.library.opcheck(torch.ops.afnext.all_to_all_unpack.default, args)
