"""A decoder's step in one call is the same as op by op, over pages of any dtype."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from afnext import ops

HIDDEN, WIDE, HEADS, KV_HEADS, DIM, SLOTS = 48, 80, 4, 2, 16, 8
EPS = 1e-6
INV_FREQ = torch.tensor([0.3**i for i in range(DIM // 2)])
TABLE = torch.tensor([[3, 1, 6], [0, 5, 2]], dtype=torch.int32)
LENGTHS, START = [5, 9], [7, 0]


def layer(dtype: torch.dtype) -> ops.DecoderLayer:
    def packed(n: int, k: int, gate_up: bool = False) -> ops.PackedWeight:
        name = str(dtype).removeprefix("torch.")
        return ops.pack(torch.randn(n, k).to(dtype) / k**0.5, name, gate_up)

    rows = (HEADS + 2 * KV_HEADS) * DIM
    return ops.DecoderLayer(
        input_norm=1 + torch.randn(HIDDEN).to(dtype) / 4,
        qkv=packed(rows, HIDDEN),
        qkv_bias=torch.randn(rows).to(dtype),
        out=packed(HIDDEN, HEADS * DIM),
        post_attention_norm=1 + torch.randn(HIDDEN).to(dtype) / 4,
        gate_up=packed(2 * WIDE, HIDDEN, gate_up=True),
        down=packed(HIDDEN, WIDE),
    )


def pages(dtype: torch.dtype, layers: int) -> dict[str, list[Tensor]]:
    shape = (8, KV_HEADS, SLOTS, DIM)
    made = {
        name: [torch.ones(shape).to(dtype) for _ in range(layers)]
        for name in ("k_pages", "v_pages")
    }
    if dtype == torch.int8:
        made |= {
            name: [torch.ones(shape[:3]) for _ in range(layers)]
            for name in ("k_scales", "v_scales")
        }
    return made


def by_op(
    hidden: Tensor,
    layers: list[ops.DecoderLayer],
    cache: dict[str, list[Tensor]],
    ends: Tensor,
    start: Tensor,
) -> Tensor:
    times = torch.cat([torch.arange(s, s + n) for s, n in zip(START, LENGTHS, strict=True)]).float()
    rotation = (times, INV_FREQ)
    for number, w in enumerate(layers):
        of_layer = {name: tensors[number] for name, tensors in cache.items()}
        scales = {name: t for name, t in of_layer.items() if name.endswith("scales")}
        held = of_layer["k_pages"], of_layer["v_pages"], TABLE, ends
        qkv = ops.linear(ops.rms_norm(hidden, w.input_norm, EPS), w.qkv, w.qkv_bias)
        q, k, v = qkv.unflatten(-1, (-1, DIM)).split((HEADS, KV_HEADS, KV_HEADS), 1)
        ops.paged_append(k, v, *held, start, rotation=rotation, **scales)
        mixed, _ = ops.paged_attention(q, *held, start + ends.diff(), rotation=rotation, **scales)
        hidden = ops.linear(mixed.flatten(1), w.out, residual=hidden)
        normed = ops.rms_norm(hidden, w.post_attention_norm, EPS)
        wide = ops.linear(normed, w.gate_up, activation="silu_mul")
        hidden = ops.linear(wide, w.down, residual=hidden)
    return hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eight_bits", [False, True])
def test_one_call_is_the_ops_one_after_another(dtype: torch.dtype, eight_bits: bool) -> None:
    layers = [layer(dtype) for _ in range(2)]
    decoder = ops.Decoder(
        layers, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, eps=EPS, inv_freq=INV_FREQ
    )
    hidden = torch.randn(sum(LENGTHS), HIDDEN).to(dtype)
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    start = torch.tensor(START, dtype=torch.int32)
    whole, single = (pages(torch.int8 if eight_bits else dtype, len(layers)) for _ in range(2))
    expected = by_op(hidden.clone(), layers, single, ends, start)
    held = [whole.pop("k_pages"), whole.pop("v_pages")]
    found = decoder(hidden, *held, TABLE, ends, start, **whole)
    assert found is hidden
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for one, other in zip([*held, *whole.values()], single.values(), strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("without", "named"),
    [
        ("v_scales", "v_scales must be given"),
        ("k_scales", "k_scales must be given"),
        ("a layer", "one tensor a layer"),
    ],
)
def test_scales_are_wanted_for_every_layer(without: str, named: str) -> None:
    layers = [layer(torch.float32) for _ in range(2)]
    decoder = ops.Decoder(
        layers, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, eps=EPS, inv_freq=INV_FREQ
    )
    cache = pages(torch.int8, 2)
    if without == "a layer":
        cache["k_scales"].pop()
    else:
        del cache[without]
    held = [cache.pop("k_pages"), cache.pop("v_pages")]
    ends, start = (torch.tensor(x, dtype=torch.int32) for x in ([0, 1, 1], [0, 0]))
    with pytest.raises(ValueError, match=named):
        decoder(torch.zeros(1, HIDDEN), *held, TABLE, ends, start, **cache)


def made(layers: list[ops.DecoderLayer], **changed: Any) -> ops.Decoder:
    args: dict[str, Any] = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "eps": EPS}
    return ops.Decoder(layers, **args | {"inv_freq": INV_FREQ} | changed)


def test_parameters_may_be_given_other_data() -> None:
    """The decoder computes with what it was made of, and keeps that memory."""
    memories: list[weakref.ref[np.ndarray]] = []

    def watched(tensor: Tensor) -> torch.nn.Parameter:
        room = np.empty(tensor.nbytes + 64, np.uint8)
        first = -room.ctypes.data % 64  # packings are aligned
        array = room[first : first + tensor.nbytes]
        memories.append(weakref.ref(array))
        held = torch.from_numpy(array).view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return torch.nn.Parameter(held, requires_grad=False)

    def packed(weight: ops.PackedWeight) -> ops.PackedWeight:
        return replace(weight, data=watched(weight.data))

    plain = layer(torch.float32)
    assert plain.qkv_bias is not None
    given = ops.DecoderLayer(
        input_norm=watched(plain.input_norm),
        qkv=packed(plain.qkv),
        qkv_bias=watched(plain.qkv_bias),
        out=packed(plain.out),
        post_attention_norm=watched(plain.post_attention_norm),
        gate_up=packed(plain.gate_up),
        down=packed(plain.down),
    )
    decoder = made([given])
    weights = (given.qkv, given.out, given.gate_up, given.down)
    for parameter in (
        given.input_norm, given.qkv_bias, given.post_attention_norm, *(w.data for w in weights)
    ):  # fmt: skip
        assert parameter is not None
        parameter.data = torch.zeros_like(parameter)
    gc.collect()
    assert all(memory() is not None for memory in memories)

    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    start = torch.tensor(START, dtype=torch.int32)
    hidden = torch.randn(sum(LENGTHS), HIDDEN)
    expected = by_op(hidden.clone(), [plain], pages(torch.float32, 1), ends, start)
    cache = pages(torch.float32, 1)
    found = decoder(hidden, cache["k_pages"], cache["v_pages"], TABLE, ends, start)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def repacked(n: int, k: int, gate_up: bool) -> ops.PackedWeight:
    return ops.pack(torch.zeros(n, k), "float32", gate_up)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: replace(w, qkv=repacked(w.qkv.n, w.qkv.k, True)),
         "layers[1].qkv must be packed without gate_up"),
        (lambda w: replace(w, out=repacked(w.out.n, w.out.k, True)),
         "layers[1].out must be packed without gate_up"),
        (lambda w: replace(w, gate_up=repacked(w.gate_up.n, w.gate_up.k, False)),
         "layers[1].gate_up must be packed with gate_up"),
        (lambda w: replace(w, down=repacked(w.down.n, w.down.k, True)),
         "layers[1].down must be packed without gate_up"),
        (lambda w: layer(torch.bfloat16), f"layers[1].input_norm must be float32 [{HIDDEN}]"),
    ],
)  # fmt: skip
def test_layers_that_no_step_could_finish_are_refused(
    change: Callable[[ops.DecoderLayer], ops.DecoderLayer], said: str
) -> None:
    """A step would find them after it has written pages and hidden."""
    layers = [layer(torch.float32) for _ in range(2)]
    layers[1] = change(layers[1])
    with pytest.raises(ValueError, match="decoder: layers") as error:
        made(layers)
    assert said in str(error.value)


@pytest.mark.parametrize("dim", [0, 257])
def test_heads_are_those_that_attention_takes(dim: int) -> None:
    rows = (HEADS + 2 * KV_HEADS) * dim
    wide = replace(
        layer(torch.float32),
        qkv=repacked(rows, HIDDEN, False),
        qkv_bias=None,
        out=repacked(HIDDEN, HEADS * dim, False),
    )
    with pytest.raises(ValueError, match=f"decoder: head_dim must be 1 to 256, got {dim}"):
        made([wide], head_dim=dim, inv_freq=torch.zeros(dim // 2))
