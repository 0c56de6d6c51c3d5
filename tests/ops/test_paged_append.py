"""paged_append: every token in its slot, nothing else touched, nothing written when refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from afnext import ops
from afnext.ops import runtime
from tests.ops.attention_oracle import offsets
from tests.ops.paged_cache import empty_cache

DTYPES = [torch.float32, torch.bfloat16]


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [1, 16, 48])
@pytest.mark.parametrize("dim", [1, 33, 64])
def test_each_token_in_its_slot(backend: str, dtype: torch.dtype, slots: int, dim: int) -> None:
    before, new = [5, 0, 40, 16], [30, 0, 1, 17]
    cache = empty_cache([a + b for a, b in zip(before, new, strict=True)], 3, slots, dim, dtype)
    k, v = torch.randn(2, sum(new), 3, dim).to(dtype).unbind(0)
    ops.paged_append(k, v, cache.k_pages, cache.v_pages, cache.table, offsets(new), int32(*before))
    at = offsets(new).tolist()
    for pages, x in ((cache.k_pages, k), (cache.v_pages, v)):
        for n in range(len(new)):
            rows = cache.gather(pages, n)
            assert rows[: before[n]].isnan().all()
            assert torch.equal(rows[before[n] :], x[at[n] : at[n + 1]])
        assert int((~pages.isnan()).sum()) == x.numel()  # and nowhere else


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("whole_times", [False, True])
def test_turns_keys_as_rotate_does(
    backend: str, dtype: torch.dtype, interleaved: bool, whole_times: bool
) -> None:
    k, v = torch.randn(2, 50, 2, 72).to(dtype).unbind(0)
    times = torch.arange(50) + 1_000_000 if whole_times else torch.rand(50) * 1e6
    inv_freq = 10.0 ** -torch.linspace(0, 4, 30)  # 60 of 72 channels
    cache = empty_cache([50], 2, 16, 72, dtype)
    ops.paged_append(
        k, v, cache.k_pages, cache.v_pages, cache.table, int32(0, 50), int32(0),
        rotation=(times, inv_freq), interleaved=interleaved,
    )  # fmt: skip
    turned = ops.rotate(k, times, inv_freq, interleaved=interleaved)
    assert torch.equal(cache.gather(cache.k_pages, 0), turned)
    assert torch.equal(cache.gather(cache.v_pages, 0), v)


def test_many_threads(backend: str) -> None:
    """Pieces begin in the middle of requests, next to empty ones."""
    new = [0, 700, 0, 0, 3, 400, 0]
    k, v = torch.randn(2, sum(new), 2, 64).unbind(0)
    cache = empty_cache(new, 2, 32, 64)
    before = runtime.num_threads()
    try:
        runtime.set_num_threads(7)
        start = torch.zeros(len(new), dtype=torch.int32)
        ops.paged_append(k, v, cache.k_pages, cache.v_pages, cache.table, offsets(new), start)
    finally:
        runtime.set_num_threads(before)
    rows = [cache.gather(cache.k_pages, n) for n in range(len(new))]
    assert torch.equal(torch.cat(rows), k)


def test_strides(backend: str) -> None:
    qkv = torch.randn(9, 8, 24)
    k, v = qkv[:, 4:6, 3:20], qkv[:, 6:8, 7:24]
    cache = empty_cache([9], 2, 4, 17)
    ops.paged_append(k, v, cache.k_pages, cache.v_pages, cache.table, int32(0, 9), int32(0))
    assert torch.equal(cache.gather(cache.k_pages, 0), k)
    assert torch.equal(cache.gather(cache.v_pages, 0), v)


@pytest.mark.parametrize("shape", [(0, 2, 8), (0, 0, 8), (4, 0, 8), (4, 2, 0)])
def test_empty(backend: str, shape: tuple[int, int, int]) -> None:
    tokens, heads, dim = shape
    cache = empty_cache([tokens], heads, 4, dim)
    k = torch.zeros(shape)
    ops.paged_append(k, k, cache.k_pages, cache.v_pages, cache.table, int32(0, tokens), int32(0))
    none = torch.zeros(0, 3, dtype=torch.int32)
    ops.paged_append(k[:0], k[:0], cache.k_pages, cache.v_pages, none, int32(0), int32())


def arguments() -> dict[str, Any]:
    """Two requests of 3 and 2 new tokens after 4 and 0, in a pool of 5 pages of 4."""
    k, v = torch.randn(2, 5, 2, 6).unbind(0)
    return {
        "k": k, "v": v, "k_pages": torch.zeros(5, 2, 4, 6), "v_pages": torch.zeros(5, 2, 4, 6),
        "page_table": torch.tensor([[3, 1], [4, -9]], dtype=torch.int32),
        "cu_seqlens": int32(0, 3, 5), "start": int32(4, 0),
        "rotation": (torch.arange(5), torch.ones(2)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"k": torch.zeros(5, 2, 6, dtype=torch.float64)}, "k"),
        ({"k": torch.zeros(5, 6)}, "k"),
        ({"v": torch.zeros(5, 2, 5)}, "v"),
        ({"v": torch.zeros(5, 2, 6, dtype=torch.bfloat16)}, "v"),
        ({"k_pages": torch.zeros(5, 2, 4, 7), "v_pages": torch.zeros(5, 2, 4, 7)}, "k_pages"),
        ({"k_pages": torch.zeros(5, 3, 4, 6), "v_pages": torch.zeros(5, 3, 4, 6)}, "k_pages"),
        ({"k_pages": torch.zeros(5, 2, 0, 6), "v_pages": torch.zeros(5, 2, 0, 6)}, "k_pages"),
        ({"v_pages": torch.zeros(4, 2, 4, 6)}, "v_pages"),
        ({"page_table": torch.tensor([[3, -1], [4, 0]], dtype=torch.int32)}, "page_table"),
        ({"page_table": torch.tensor([[3, 5], [4, 0]], dtype=torch.int32)}, "page_table"),
        ({"page_table": torch.tensor([[3, 1], [5, 0]], dtype=torch.int32)}, "page_table"),
        ({"page_table": torch.tensor([[3, 1], [4, 0]])}, "page_table"),
        ({"page_table": torch.zeros(3, 2, dtype=torch.int32)}, "page_table"),
        ({"cu_seqlens": int32(0, 3, 4)}, "cu_seqlens"),
        ({"cu_seqlens": int32(0, 6, 5)}, "cu_seqlens"),
        ({"cu_seqlens": int32(1, 3, 5)}, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 3, 5])}, "cu_seqlens"),
        ({"start": int32(4)}, "start"),
        ({"start": int32(4, -1)}, "start"),
        ({"start": int32(6, 0)}, "start"),
        ({"start": int32(2**31 - 1, 0)}, "start"),
        ({"rotation": (torch.arange(4), torch.ones(2))}, "rotation times"),
        ({"rotation": (torch.arange(5), torch.ones(4))}, "rotation inv_freq"),
        ({"rotation": (torch.arange(5), torch.ones(2, dtype=torch.float64))}, "rotation inv_freq"),
    ],
)
def test_refusal_names_the_argument_and_writes_nothing(
    backend: str, change: dict[str, Any], named: str
) -> None:
    args = arguments() | change
    with pytest.raises(ValueError, match=f"paged_append: {named}"):
        ops.paged_append(**args)
    assert not args["k_pages"].any()
    assert not args["v_pages"].any()


def test_numpy_pages_change_in_place() -> None:
    args = arguments()
    arrays = {
        name: tuple(p.numpy() for p in x) if isinstance(x, tuple) else x.numpy().copy()
        for name, x in args.items()
    }
    ops.paged_append(**args)
    ops.paged_append(**arrays)
    assert torch.equal(torch.from_numpy(arrays["k_pages"]), args["k_pages"])
    assert arrays["v_pages"].any()
    for pages in (arrays["v_pages"][::-1], arrays["v_pages"].astype(">f4")):
        with pytest.raises(ValueError, match=r"v_pages must be contiguous and in .* byte order"):
            ops.paged_append(**arrays | {"v_pages": pages})
    arrays["v_pages"].flags.writeable = False
    with pytest.raises(ValueError, match="v_pages"):
        ops.paged_append(**arrays)


@pytest.mark.parametrize("axis", [0, 1])
def test_numpy_pages_whose_single_row_lies_backwards_change_in_place(axis: int) -> None:
    """Such an array is contiguous, whatever the stride of an axis of one element."""
    pages = np.zeros((2, 1, 4, 6) if axis else (1, 2, 4, 6), np.float32)
    backwards = np.flip(pages, axis)
    assert backwards.strides[axis] < 0
    assert backwards.flags.c_contiguous
    heads = pages.shape[1]
    k = np.ones((2, heads, 6), np.float32)
    table, ends, start = (np.array(a, np.int32) for a in ([[0]], [0, 2], [0]))
    ops.paged_append(k, 2 * k, backwards, np.zeros_like(pages), table, ends, start)
    assert pages[0, :, :2].all()
    assert not pages[0, :, 2:].any()


def test_opcheck() -> None:
    args = arguments()
    times, inv_freq = args.pop("rotation")
    torch.library.opcheck(
        torch.ops.afnext.paged_append.default,
        (*args.values(), times.float(), inv_freq, False, None, None),
    )
