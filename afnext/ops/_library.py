"""How an op meets torch: one ``define`` per op, nothing hidden.

``Library.define``/``impl`` costs about 2 µs a call where the ``custom_op`` decorator costs 9, so ops are
registered by hand: CPU tensors go to the C++ kernel, CUDA tensors too where the build has one, every other
device to plain torch in ``reference``.
An autograd layer in Python costs another 6 µs, with or without gradients: a differentiable op has a second
overload without one.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ._compiled import compiled

Array = TypeVar("Array", Tensor, NDArray[Any])
"""What ops take and return: torch's or NumPy's, one of the two throughout a call."""
AnyArray: TypeAlias = Tensor | NDArray[Any]
"""An argument of another dtype than the first one's: a type checker would find no common type of the two."""

LIBRARY = torch.library.Library("afnext", "DEF")
_references: dict[str, Callable[..., Any]] = {}


@contextmanager
def force_reference() -> Iterator[None]:
    """Run every op in plain torch inside the block, as a device without kernels of ours would.

    For all threads: the CPU's kernels are registered over, so that no call has to ask.
    """
    with torch.library._scoped_library("afnext", "IMPL") as library:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it overrides
            for name, reference in _references.items():
                library.impl(name, reference, "CPU", allow_override=True)
        yield


class Op(NamedTuple):
    """What torch calls: the op with its autograd formula, and the same without."""

    default: Callable[..., Any]
    no_grad: Callable[..., Any]


def define(
    schema: str,
    *,
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
    cuda: bool = False,
    host: tuple[str, ...] = (),
) -> Op:
    """Register one op.

    Args:
        schema: torch schema without the namespace, as ``"silu_mul(Tensor gate, Tensor up) -> Tensor"``.
        kernel: allocates outputs and calls the C++ kernel.
        reference: the same op in plain torch, for devices without kernels.
        fake: shape rule: checks its arguments and returns empty outputs.
        backward, save: the autograd formula and its ``setup_context``.
        cuda: whether ``kernel`` serves CUDA tensors too, in builds with CUDA kernels.
        host: metadata that kernels read on the CPU: best given there whatever the device of the others
            (copying it there waits for the device).
    """
    name = schema.partition("(")[0]

    names = [part.split()[-1] for part in schema.partition("(")[2].rpartition(") ->")[0].split(",")]

    def shape_rule(*args: Any) -> Any:
        _check_devices(name, names, host, args)
        return fake(*args)

    def on_any(*args: Any) -> Any:
        shape_rule(*args)
        return reference(*args)

    def on_cuda(*args: Any) -> Any:
        return kernel(
            *(
                arg.cpu() if name in host and isinstance(arg, Tensor) else arg
                for name, arg in zip(names, args, strict=False)
            )
        )

    def register(overload: str) -> Callable[..., Any]:
        full = f"{name}.{overload}" if overload else name
        _references[full] = on_any
        LIBRARY.define(full + schema.removeprefix(name))
        LIBRARY.impl(full, kernel, "CPU")
        if cuda and compiled.has_cuda:
            LIBRARY.impl(full, on_cuda if host else kernel, "CUDA")
        LIBRARY.impl(full, on_any, "CompositeExplicitAutograd")
        torch.library.register_fake(f"afnext::{full}", shape_rule, lib=LIBRARY)
        made: Callable[..., Any] = getattr(getattr(torch.ops.afnext, name), overload or "default")
        return made

    default = register("")
    if backward is None:
        return Op(default, default)
    torch.library.register_autograd(f"afnext::{name}", backward, setup_context=save, lib=LIBRARY)
    return Op(default, register("no_grad"))


def _check_devices(op: str, names: list[str], host: tuple[str, ...], args: tuple[Any, ...]) -> None:
    first: Tensor | None = None
    for name, arg in zip(names, args, strict=False):
        if not isinstance(arg, Tensor) or name in host:
            continue
        first = arg if first is None else first
        if arg.device != first.device:
            raise ValueError(
                f"{op}: {name} must be on {first.device} like {names[0]}, got {arg.device}"
            )


def call(op: Op, needs_grad: bool, *args: Any) -> Any:
    """Call a differentiable op."""
    if forward_ad._current_level >= 0:
        refuse_tangents(op, *args)
    try:
        return (op.default if needs_grad else op.no_grad)(*args)
    except RuntimeError as error:
        raise refusal(error) from error.__cause__


def refuse_tangents(op: Op, *args: Any) -> None:
    """Raise where a tensor carries a derivative in forward mode: torch would drop it in silence.

    To be called where ``forward_ad._current_level`` is 0 or more: asking that costs next to nothing.

    Raises:
        NotImplementedError: as torch does for its own ops without such a derivative.
    """
    if any(isinstance(arg, Tensor) and _has_tangent(arg) for arg in args):
        word = op.default._opname  # type: ignore[attr-defined]
        raise NotImplementedError(
            f"{_PUBLIC.get(word, word)}: has no derivative in forward mode: take torch.autograd.grad"
        )


def _has_tangent(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    if functorch.is_batchedtensor(tensor):
        return _has_tangent(functorch.get_unwrapped(tensor))
    if forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    # One of an outer transform of torch.func, whose tangent cannot be seen from here.
    top = functorch.peek_interpreter_stack()
    outer = top is not None and functorch.maybe_get_level(tensor) < top.level()
    return outer and functorch.is_gradtrackingtensor(tensor)


def call_detached(op: Op, *args: Any) -> Any:
    """Call an op without an autograd formula, whatever its arguments require."""
    try:
        if not torch.is_grad_enabled() or is_compiling():
            return op.default(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op.default(*args)
    except RuntimeError as error:
        raise refusal(error) from error.__cause__


# What torch says, in several lines, of an argument that does not fit an op's schema.
_MISFIT = re.compile(
    r"afnext::(\w+)\(\) Expected a value of type '(.+?)' for argument '(\w+)' "
    r"but instead found type '(.+?)'"
)
_KINDS = {"bool": "a bool", "float": "a number", "int": "an integer", "str": "a string"}
# Public names where those of the schema differ.
_PUBLIC = {"scale": "softmax_scale", "packed_linear": "linear", "add_rms_norm": "rms_norm"}


def refusal(error: RuntimeError) -> Exception:
    """The error in one line, where torch refused an argument for its type; else ``error`` itself.

    Told only when a call has failed, so that good ones pay nothing for it.
    """
    found = _MISFIT.match(str(error))
    if found is None:
        return error
    op, wanted, argument, got = (_PUBLIC.get(word, word) for word in found.groups())
    kind = _KINDS.get(wanted, "a tensor" if "Tensor" in wanted else wanted)
    return ValueError(f"{op}: {argument} must be {kind}, got {got}")


def outputs(q: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Attention's results for ``q [T, H, D]``: contiguous out, of q's dtype or ``dtype``, and lse."""
    if dtype is None and q.is_contiguous():
        out = torch.empty_like(q)  # the cheapest way
    else:
        out = torch.empty_like(q, dtype=dtype, memory_format=torch.contiguous_format)
    shape = q.shape
    heads = shape[1] if len(shape) == 3 else 0  # else the kernel refuses q
    return out, torch.empty(heads, shape[0], dtype=torch.float32, device=q.device)


def as_rows(x: Tensor) -> Tensor:
    """``x [..., D]`` as ``[rows, D]``, for a D of 0 too, where torch cannot tell what -1 stands for."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd is on and one of ``tensors`` asks for it; what is none is refused by the call."""
    return torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in tensors
    )


def from_numpy(op: str, name: str, value: np.ndarray) -> Tensor:
    """An array as a tensor, without a copy where torch can hold it as it lies in memory.

    Raises:
        ValueError: its dtype is none of torch's.
    """
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if not value.flags.writeable:
        value = value.copy()
    elif any(s < 0 or s % (value.itemsize or 1) for s in value.strides):
        # Of a contiguous array it is the stride of an axis of one element, which may be anything.
        contiguous = value.flags.c_contiguous
        value = value.reshape(-1).reshape(value.shape) if contiguous else value.copy()
    try:
        tensor = torch.from_numpy(value)
    except TypeError:
        raise ValueError(
            f"{op}: {name} must be of a dtype that torch has, got {value.dtype}"
        ) from None
    # NumPy gives an array without elements strides of 0, torch those of a contiguous one.
    return tensor if value.size else torch.empty(value.shape, dtype=tensor.dtype, device="cpu")


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(signature(function).parameters)


def through_torch(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run ``function`` on NumPy arguments: arrays in (no copy), arrays out."""
    op = function.__name__

    def tensor(value: Any, name: str) -> Any:
        if isinstance(value, np.ndarray):
            return from_numpy(op, name, value)
        if isinstance(value, tuple):  # a rotation
            parts = (tensor(part, name) for part in value)
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    def array(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(array(v) for v in value)
        return value.detach().numpy() if isinstance(value, Tensor) else value

    args = tuple(map(tensor, args, _parameters(function)))
    kwargs = {k: tensor(v, k) for k, v in kwargs.items()}
    if not args or not isinstance(args[0], Tensor):
        got = type(args[0]).__name__ if args else "nothing"
        raise ValueError(
            f"{op}: the first argument must be a torch tensor or NumPy array, got {got}"
        )
    return array(function(*args, **kwargs))
