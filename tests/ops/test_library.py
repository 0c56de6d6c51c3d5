"""How ops meet torch: what every op owes to callers, whoever wrote its kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from afnext import ops
from afnext.ops._compiled import compiled

X, TIMES, INV_FREQ, WEIGHT = torch.ones(2, 1, 8), torch.zeros(2), torch.ones(4), torch.ones(8)
LSE = torch.zeros(1, 2)

TAKE_ARRAYS = (
    "all_to_all_pack", "all_to_all_unpack", "attention", "layer_norm", "linear", "log_mel",
    "merge_attention", "paged_append", "paged_attention", "rms_norm", "rotate", "sample", "silu_mul",
)  # fmt: skip

MISUSES: list[tuple[str, Callable[[], object]]] = [
    ("rotate: interleaved must be a bool, got str",
     lambda: ops.rotate(X, TIMES, INV_FREQ, interleaved="x")),
    ("rotate: angles must be a tensor, got str", lambda: ops.rotate(X, angles="x")),
    ("rms_norm: eps must be a number, got NoneType", lambda: ops.rms_norm(X, WEIGHT, None)),
    ("rms_norm: eps must be a number, got str", lambda: ops.rms_norm(X, WEIGHT, "x", X)),
    ("layer_norm: eps must be a number, got NoneType",
     lambda: ops.layer_norm(X, WEIGHT, WEIGHT, None)),
    ("silu_mul: up must be a tensor, got int", lambda: ops.silu_mul(X, 4)),
    ("merge_attention: lse_b must be a tensor, got NoneType",
     lambda: ops.merge_attention(X, LSE, X, None)),
    # Under its public name: the schema calls it scale.
    ("attention: softmax_scale must be a number, got str",
     lambda: ops.attention(X, X, X, softmax_scale="x")),
    ("paged_attention: causal must be a bool, got list",
     lambda: ops.paged_attention(X, X, X, X, X, X, causal=[])),
    ("paged_attention: softmax_scale must be a number, got str",
     lambda: ops.paged_attention(X, X, X, X, X, X, softmax_scale="x")),
    # A first argument of torch's has the others be torch's, too.
    ("attention: k must be a tensor, got ndarray",
     lambda: ops.attention(X, X.numpy(), X.numpy())),
    ("attention: cu_seqlens_k must be a tensor, got list",
     lambda: ops.attention(X, X, X, cu_seqlens_k=[0, 2])),
    ("attention: times_q must be a tensor, got ndarray",
     lambda: ops.attention(X, X, X, rotation=ops.Rotation(TIMES.numpy(), TIMES, INV_FREQ))),
    ("rms_norm: weight must be a tensor, got ndarray",
     lambda: ops.rms_norm(X, WEIGHT.numpy(), 1e-6)),
    ("rms_norm: residual must be a tensor, got list", lambda: ops.rms_norm(X, WEIGHT, 1e-6, [1.0])),
    ("layer_norm: bias must be a tensor, got ndarray",
     lambda: ops.layer_norm(X, WEIGHT, WEIGHT.numpy())),
    ("silu_mul: up must be a tensor, got ndarray", lambda: ops.silu_mul(X, X.numpy())),
    ("linear: weight must be a tensor or a PackedWeight, got ndarray",
     lambda: ops.linear(X, WEIGHT.numpy())),
    ("merge_attention: lse_a must be a tensor, got ndarray",
     lambda: ops.merge_attention(X, LSE.numpy(), X, LSE)),
    ("rotate: times must be a tensor, got list", lambda: ops.rotate(X, [0, 1], INV_FREQ)),
    ("log_mel: cu_samples must be a tensor, got ndarray",
     lambda: ops.log_mel(TIMES, np.array([0, 2]))),
    ("paged_append: v must be a tensor, got ndarray",
     lambda: ops.paged_append(X, X.numpy(), X, X, X, X, X)),
    ("sample: top_k must be a tensor, got ndarray",
     lambda: ops.sample(X[0], TIMES, TIMES.numpy(), TIMES, TIMES, TIMES)),
    # What torch cannot hold, and numbers that no root survives.
    ("rms_norm: weight must be of a dtype that torch has, got <U1",
     lambda: ops.rms_norm(X.numpy(), np.array(["a"]), 1e-6)),
    ("pack: weight must be of a dtype that torch has, got <U1",
     lambda: ops.pack(np.array([["a"]]), "float32")),
    ("quantize: weight must be of a dtype that torch has, got object",
     lambda: ops.quantize(np.array([[None]]), "int8")),
    ("rms_norm: eps must be 0 or more, got -1", lambda: ops.rms_norm(X, WEIGHT, -1)),
    ("layer_norm: eps must be 0 or more, got nan",
     lambda: ops.layer_norm(X, WEIGHT, WEIGHT, math.nan)),
    ("quantize: zero_points must be a bool, got str",
     lambda: ops.quantize(X[0], "int8", zero_points="x")),
]  # fmt: skip


@pytest.mark.parametrize(("said", "call"), MISUSES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_argument_of_a_wrong_type_is_one_line(
    said: str, call: Callable[[], object], mode: Callable[[], object]
) -> None:
    """torch's own words for it are five lines with its schema."""
    with mode(), pytest.raises(ValueError, match="must be") as error:
        call()
    assert str(error.value) == said


def test_a_first_argument_of_numpys_has_the_result_be_numpys() -> None:
    """Whatever the others are, and though a Parameter asks for gradients."""
    weight = torch.nn.Parameter(WEIGHT)
    out = ops.rms_norm(X.numpy(), weight, 1e-6)
    assert isinstance(out, np.ndarray)
    assert np.array_equal(out, ops.rms_norm(X, WEIGHT, 1e-6).numpy())


@pytest.mark.parametrize("name", TAKE_ARRAYS)
def test_ops_are_typed_for_arrays(name: str) -> None:
    """The package ships its types: a checker of the caller's must let NumPy's arrays in."""
    first = next(iter(get_type_hints(getattr(ops, name)).values()))
    assert first.__constraints__[0] is torch.Tensor
    assert get_origin(first.__constraints__[1]) is np.ndarray


def test_arrays_without_elements() -> None:
    """NumPy gives them strides of 0, which no op would take for a row of numbers."""
    none, weight = np.zeros((0, 8), np.float32), WEIGHT.numpy()
    assert ops.rms_norm(none, weight, 1e-6).shape == (0, 8)
    assert ops.layer_norm(none, weight, weight).shape == (0, 8)
    assert ops.linear(none, X[:, 0].numpy()).shape == (0, 2)
    assert ops.linear(none, ops.pack(X[:, 0], "float32")).shape == (0, 2)
    assert ops.attention(none[:, None], none[:, None], none[:, None])[0].shape == (0, 1, 8)
    packed = ops.pack(none, "float32")
    assert (packed.n, packed.k) == (0, 8)


@pytest.mark.parametrize("how", ["backwards", "big endian", "a field of a record", "read-only"])
def test_arrays_that_torch_cannot_hold_are_copied(how: str) -> None:
    x = np.random.default_rng(0).standard_normal(1600).astype(np.float32)
    if how == "backwards":
        array = x[::-1].copy()[::-1]
    elif how == "big endian":
        array = x.astype(">f4")
    elif how == "a field of a record":
        records = np.zeros(1600, [("x", "f4"), ("y", "i1")])
        records["x"], array = x, records["x"]
    else:
        array = x.view()
        array.flags.writeable = False
    assert np.array_equal(ops.log_mel(array), ops.log_mel(x))
    assert np.array_equal(ops.silu_mul(array, x), ops.silu_mul(x, x))


def test_also_where_gradients_flow() -> None:
    x = X.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"^rms_norm: eps must be a number, got NoneType$"):
        ops.rms_norm(x, WEIGHT, None)


def test_other_errors_of_torch_stay_what_they_are() -> None:
    """A matrix that does not fit into memory is no misuse of a type."""
    huge = torch.empty(1, 1).expand(1 << 40, 1)
    with pytest.raises(RuntimeError, match="alloc"):
        ops.silu_mul(huge, huge)


def test_ops_compile_in_one_graph() -> None:
    """The compiler follows a call through its checks."""

    def layer(x: torch.Tensor) -> torch.Tensor:
        turned = ops.rotate(ops.rms_norm(x, WEIGHT, 1e-6), TIMES, INV_FREQ)
        out, _ = ops.attention(turned, turned, turned, causal=True)
        return ops.silu_mul(out, out)

    x = torch.randn(2, 1, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))


DIFFERENTIABLE: dict[str, Callable[[torch.Tensor], Any]] = {
    "all_to_all_pack": lambda x: ops.all_to_all_pack(x, [0, 1], [0]),
    "all_to_all_unpack": lambda x: ops.all_to_all_unpack(x[:, 0], [0, 1], [0], 1),
    "attention": lambda x: ops.attention(X, X, x),
    "layer_norm": lambda x: ops.layer_norm(x, WEIGHT, WEIGHT),
    "linear": lambda x: ops.linear(x, torch.ones(3, 8)),
    "merge_attention": lambda x: ops.merge_attention(x, LSE, X, LSE),
    "rms_norm": lambda x: ops.rms_norm(X, WEIGHT, 1e-6, residual=x),
    "rotate": lambda x: ops.rotate(x, TIMES, INV_FREQ),
    "silu_mul": lambda x: ops.silu_mul(X, x),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_is_refused(name: str) -> None:
    """torch would give derivatives of zero."""
    op = DIFFERENTIABLE[name]
    said = f"^{name}: has no derivative in forward mode"
    with forward_ad.dual_level():
        op(X)  # no derivative is asked of it
        for mode in (torch.enable_grad, torch.no_grad):  # which does not concern forward mode
            with mode(), pytest.raises(NotImplementedError, match=said):
                op(forward_ad.make_dual(X, X))
    with pytest.raises(NotImplementedError, match=said):
        torch.func.jvp(op, (X,), (X,))


def test_a_packed_weight_refuses_forward_mode_too() -> None:
    weight = ops.pack(torch.ones(3, 8), "float32")
    with pytest.raises(NotImplementedError, match=r"^linear: has no derivative in forward mode"):
        torch.func.jvp(lambda x: ops.linear(x, weight), (X,), (X,))


@pytest.mark.parametrize(
    "nested",
    [
        lambda op: torch.func.jvp(torch.func.vmap(op), (X,), (X,)),
        lambda op: torch.func.vmap(lambda x: torch.func.jvp(op, (x,), (x,)))(X),
        lambda op: torch.func.jvp(
            lambda x: torch.func.jvp(lambda y: y + op(x), (X,), (X,)), (X,), (X,)
        ),
        lambda op: torch.func.jvp(
            lambda x: torch.func.grad(lambda y: (y * op(x)).sum())(X), (X,), (X,)
        ),
    ],
    ids=["jvp of vmap", "vmap of jvp", "jvp in jvp", "grad in jvp"],
)
def test_forward_mode_is_refused_within_other_transforms(
    nested: Callable[[Callable[..., Any]], object],
) -> None:
    with pytest.raises(NotImplementedError, match=r"^rms_norm: has no derivative in forward mode"):
        nested(lambda x: ops.rms_norm(x, WEIGHT, 1e-6))


def test_rows_may_lie_backwards() -> None:
    """Arrays of other libraries reach kernels as they lie: rows at a negative distance are read there, and
    none that lie at no single distance."""
    x = np.random.default_rng(0).standard_normal((2, 3, 8), np.float32)
    out, weight = np.empty_like(x), WEIGHT.numpy()
    compiled.rms_norm(x[::-1, ::-1], None, weight, 1e-6, out, None)
    assert np.array_equal(out, ops.rms_norm(x, weight, 1e-6)[::-1, ::-1])
    for uneven in (x[:, ::-1], x[::-1]):
        with pytest.raises(ValueError, match="rms_norm: x must have rows at a uniform distance"):
            compiled.rms_norm(uneven, None, weight, 1e-6, out, None)


def locked(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def written() -> dict[str, tuple[Callable[..., None], dict[str, Any]]]:
    """Compiled calls of an argument or more that they write, in order of their arguments; what is written
    is named as the error names it."""
    x, lse = X.numpy(), LSE.numpy()
    row, weight = x[:, 0], WEIGHT.numpy()
    masks = dict.fromkeys(("cu_q", "cu_k", "lengths", "times_q", "times_k", "inv_freq"))
    policy = {"interleaved": False, "causal": False, "left": -1, "right": -1, "scale": 1.0}
    pages = {"k_pages": np.zeros((1, 1, 4, 8), np.float32)}
    pages |= {"v_pages": pages["k_pages"]}
    small = {name: page.astype(np.int8) for name, page in pages.items()}
    scales = {name: np.zeros((1, 1, 4), np.float32) for name in ("k_scales", "v_scales")}
    table, ends = np.zeros((1, 1), np.int32), np.array([0, 2], np.int32)
    held, start = np.array([2], np.int32), np.array([0], np.int32)
    unturned: dict[str, Any] = {"times": None, "inv_freq": None, "interleaved": False}
    plain: dict[str, Any] = {"k_scales": None, "v_scales": None}
    batch = {"table": table, "ends": ends}
    packing = {"format": "float32", "n": 2, "k": 8, "gate_up": False}
    packed = ops.pack(row, "float32").data.numpy()
    f32 = np.float32
    appended = {"k": x, "v": x}
    return {
        "all_to_all_pack": (
            compiled.all_to_all_pack,
            {"x": x, "offsets": [0, 1], "heads": [0], "out": row, "peers": [], "first": 0},
        ),
        "all_to_all_unpack": (
            compiled.all_to_all_unpack,
            {"x": row, "offsets": [0, 1], "heads": [0], "out": x, "peers": [], "first": 0},
        ),
        "attention": (
            compiled.attention,
            {"q": x, "k": x, "v": x} | masks | policy | {"out": x, "lse": lse},
        ),
        "attention_backward": (
            compiled.attention_backward,
            {"grad": x, "grad_lse": None, "q": x, "k": x, "v": x, "forward": x, "sums": lse}
            | masks | policy | {"grad_q": x, "grad_k": x, "grad_v": x},
        ),
        "layer_norm": (
            compiled.layer_norm,
            {"x": x, "weight": weight, "bias": weight, "eps": 1e-6, "pooled": None, "out": x},
        ),
        "linear": (compiled.linear, {"x": row, "weight": row, "bias": None, "out": row[:, :2].copy()}),
        "log_mel": (
            compiled.log_mel,
            {"samples": np.zeros(160, f32), "ends": [0, 160], "frames": [1],
             "out": np.zeros((1, 128), f32)},
        ),
        "merge_attention": (
            compiled.merge_attention,
            {"a": x, "lse_a": lse, "b": x, "lse_b": lse, "out": x, "lse": lse},
        ),
        "pack": (
            compiled.pack, {"weight": row, "format": "float32", "gate_up": False, "data": packed}
        ),
        "unpack": (compiled.unpack, {"packed": packed} | packing | {"out": row}),
        "packed_linear": (
            compiled.packed_linear,
            {"x": row, "packed": packed, "bias": None, "residual": None} | packing
            | {"activation": "", "out": row[:, :2].copy()},
        ),
        "paged_append": (
            compiled.paged_append, appended | pages | batch | {"start": start} | unturned | plain
        ),
        "paged_append of 8 bits": (
            compiled.paged_append, appended | small | batch | {"start": start} | unturned | scales
        ),
        "paged_attention": (
            compiled.paged_attention,
            {"q": x, "seen_k": pages["k_pages"], "seen_v": pages["v_pages"]} | batch
            | {"held": held} | unturned
            | {"causal": True, "left": -1, "right": -1, "scale": 1.0, "ks": None, "vs": None}
            | {"out": x, "lse": lse},
        ),
        "quantize": (
            compiled.quantize,
            {"weight": row, "format": "int8", "values": np.zeros((2, 8), np.int8),
             "scales": np.zeros(2, f32), "zero": None},
        ),
        "rms_norm": (
            compiled.rms_norm,
            {"x": x, "residual": x, "weight": weight, "eps": 1e-6, "out": x, "total": x},
        ),
        "rotate": (
            compiled.rotate,
            {"x": x, "times": TIMES.numpy(), "inv_freq": INV_FREQ.numpy(), "angles": None,
             "interleaved": False, "inverse": False, "out": x},
        ),
        "sample": (
            compiled.sample,
            {"logits": row, "temperature": np.ones(2, f32), "top_k": np.zeros(2, np.int32),
             "top_p": np.ones(2, f32), "min_p": np.zeros(2, f32), "uniform": np.zeros(2, f32),
             "tokens": np.zeros(2, np.int64), "logprobs": np.zeros(2, f32)},
        ),
        "silu_mul": (compiled.silu_mul, {"gate": x, "up": x, "out": x}),
    }  # fmt: skip


WRITTEN = (
    "out", "lse", "total", "data", "k_pages", "v_pages", "k_scales", "v_scales", "values", "scales",
    "tokens", "logprobs", "grad_q", "grad_k", "grad_v",
)  # fmt: skip


@pytest.mark.parametrize("name", list(written()))
def test_what_is_read_only_is_read_and_never_written(name: str) -> None:
    """Arrays that somebody lent for reading reach kernels through DLPack, which says so."""
    function, args = written()[name]
    outputs = [key for key in args if key in WRITTEN and isinstance(args[key], np.ndarray)]
    assert outputs

    def fresh(key: str) -> Any:
        value = args[key]
        if not isinstance(value, np.ndarray):
            return value
        if key in outputs:
            return value if key == "data" else value.copy()  # packings are aligned
        return value if key == "packed" else locked(value)

    function(*(fresh(key) for key in args))
    for output in outputs:
        given = [locked(args[key]) if key == output else fresh(key) for key in args]
        before = args[output].copy()
        with pytest.raises(ValueError, match=f"{output} must be writeable"):
            function(*given)
        assert np.array_equal(given[list(args).index(output)], before)


def test_a_step_of_a_plan_does_not_write_what_is_read_only() -> None:
    pages, x, lse = np.zeros((1, 1, 4, 8), np.float32), X.numpy(), LSE.numpy()
    plan = compiled.PagedAttentionPlan(pages, 1, 1, 1, 2, 2, 1, True, -1, -1)
    table, ends, held = (np.array(a, np.int32) for a in ([[0]], [0, 2], [2]))
    plan.update(locked(pages), locked(table), locked(ends), locked(held))
    unturned, plain = (None, None, False), (None, None)
    for at, said in enumerate(("k_pages", "v_pages")):
        given = [pages.copy(), pages.copy()]
        given[at] = locked(pages)
        with pytest.raises(ValueError, match=f"paged_append: {said} must be writeable"):
            plan.append(locked(x), locked(x), *given, *unturned, *plain)
    read = (locked(x), locked(pages), locked(pages), *unturned, 1.0, *plain)
    plan.attend(*read, x.copy(), lse.copy())
    with pytest.raises(ValueError, match="paged_attention: out must be writeable"):
        plan.attend(*read, locked(x), lse.copy())
    with pytest.raises(ValueError, match="paged_attention: lse must be writeable"):
        plan.attend(*read, x.copy(), locked(lse))


def test_a_null_pointer_is_followed_nowhere() -> None:
    freed = torch.ones(2, 8)
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="silu_mul: up has no memory"):
        ops.silu_mul(torch.ones(2, 8), freed)

    # A tensor as torch before 2.10 shows it, without the exchange API.
    def older(*shape: int) -> SimpleNamespace:
        return SimpleNamespace(
            data_ptr=lambda: 0, stride=lambda: (8, 1), shape=shape, dtype=torch.float32,
            device=torch.device("cpu"),
        )  # fmt: skip

    with pytest.raises(ValueError, match="tensors has no memory"):
        compiled.empty(older(2, 8))
    compiled.empty(older(0, 8))  # there is nothing to read


def test_arrays_stay_on_the_cpu_whatever_the_default_device() -> None:
    none = np.zeros((0, 8), np.float32)
    with torch.device("meta"):
        assert ops.rms_norm(none, WEIGHT.numpy(), 1e-6).shape == (0, 8)
