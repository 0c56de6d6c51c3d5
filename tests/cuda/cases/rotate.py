"""Rotation: both pairings and directions, parts of the channels, strided tokens, a million positions."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tests.cuda.harness import FLOATS, UNIT, Case, Kernels, assert_close, generator


def turned(x: Tensor, phases: Tensor, interleaved: bool) -> Tensor:
    """The definition in float64; channels beyond those of ``phases [T, R / 2]`` stay."""
    out, half = x.double().clone(), phases.shape[1]
    first, second = slice(0, half), slice(half, 2 * half)
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    a, b = out[..., first].clone(), out[..., second].clone()
    cos, sin = phases.cos()[:, None], phases.sin()[:, None]
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out


def run(
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    half: int,
    interleaved: bool,
    inverse: bool,
    given: bool,
    kernels: Kernels,
) -> None:
    random = generator(name)
    tokens, heads, dim = shape
    # As a projection of queries and keys together leaves them, so that tokens lie apart.
    x = torch.randn(tokens, heads + 2, dim, generator=random).to(dtype)[:, :heads]
    times = torch.randint(0, 1_000_000, (tokens,), generator=random).float()
    times[-1] = -999_999.75  # fractions of a position too
    inv_freq = 1e6 ** -(torch.arange(half) / max(half, 1))
    angles = torch.randn(tokens, half, generator=random) * 100
    phases = angles.double() if given else times.double()[:, None] * inv_freq.double()
    out = kernels.empty(*shape, dtype=dtype)
    kernels.compiled.rotate(
        kernels.put(x),
        None if given else kernels.put(times),
        None if given else kernels.put(inv_freq),
        kernels.put(angles) if given else None,
        interleaved,
        inverse,
        out,
    )
    exact = turned(x, -phases if inverse else phases, interleaved)
    # One rounding of the result; the phase's 1e-6 on values up to 5, where terms may cancel.
    assert_close(kernels.get(out), exact, relative=UNIT[dtype], absolute=6e-6)
    if 2 * half < dim:
        assert torch.equal(kernels.get(out)[..., 2 * half :], x[..., 2 * half :])


def run_phases(name: str, kernels: Kernels) -> None:
    """(1, 0) turns into (cos, sin): the error is that of the phase, the largest over times to a million
    and frequencies to 1, and over the whole numbers nearest to multiples of pi / 2."""
    random = generator(name)
    times = torch.cat((torch.randint(0, 1_000_001, (2000,), generator=random).float(),
                       torch.rand(2000, generator=random) * 1e6,
                       torch.tensor([0.0, 11, 22, 355, 710, 103993, 104348, 208341, 312689, 833719, 1e6]),
                       ))  # fmt: skip
    inv_freq = torch.cat((torch.ones(1), torch.rand(15, generator=random)))
    x = torch.zeros(len(times), 1, 32)
    x[..., :16] = 1.0
    out = kernels.empty(*x.shape, dtype=torch.float32)
    kernels.compiled.rotate(
        kernels.put(x), kernels.put(times), kernels.put(inv_freq), None, False, False, out
    )
    phases = times.double()[:, None] * inv_freq.double()
    got = kernels.get(out)[:, 0].double()
    assert (got[:, :16] - phases.cos()).abs().max() < 1e-6
    assert (got[:, 16:] - phases.sin()).abs().max() < 1e-6


def _cases() -> list[Case]:
    made = [Case("phases", partial(run_phases, "phases"))]
    for dtype in FLOATS:
        for shape, half, interleaved, inverse, given, core in [
            ((3, 5, 128), 64, False, False, False, True),
            ((3, 4, 64), 32, True, True, False, True),
            ((2, 3, 80), 16, False, True, True, True),  # channels that do not turn
            ((2, 1, 48), 8, True, False, True, True),
            ((4, 3, 22), 5, False, False, False, True),  # nothing is aligned
            ((4, 2, 7), 3, True, True, True, True),
            ((2, 2, 8), 0, False, False, True, True),  # nothing turns
            ((40, 28, 128), 64, False, False, False, False),
            ((9, 1, 1280), 640, False, False, True, False),
        ]:
            kind = str(dtype).removeprefix("torch.")
            flags = "-interleaved" * interleaved + "-inverse" * inverse + "-angles" * given
            name = f"{kind}-{'x'.join(map(str, shape))}-{half}{flags}"
            run_it = partial(run, name, dtype, shape, half, interleaved, inverse, given)
            made.append(Case(name, run_it, core))
    return made


CASES = _cases()
