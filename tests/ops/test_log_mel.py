"""log_mel: transformers, a float64 spectrum by NumPy, ragged windows, ends, silence, bad input."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from afnext import ops
from afnext.ops import runtime

WINDOW = 480_000
# Float32 transforms leave a noise floor 1e-7 of the loudest bin; the logarithm of what lies just above
# the clip at 1e-4 of it (8 decades of power) is good to about 5e-5. transformers' own error is the same.
ATOL = 1e-4


@cache
def mel_weights() -> np.ndarray:
    """Slaney filters in float64, as transformers builds them."""
    return mel_filter_bank(201, 128, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")


def expected(window: np.ndarray, frames: int) -> np.ndarray:
    """Whisper's definition in float64; frames that lie wholly in silence are filled in."""
    audible = min(3000, len(window) // 160 + 3)
    padded = np.pad(window.astype(np.float64), (0, WINDOW - len(window)))
    padded = np.pad(padded, 200, mode="reflect")
    starts = np.arange(audible) * 160
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(padded[starts[:, None] + np.arange(400)] * hann)) ** 2
    logs = np.full((3000, 128), -10.0)
    logs[:audible] = np.log10(np.maximum(power @ mel_weights(), 1e-10))
    return ((np.maximum(logs, logs.max() - 8) + 4) / 4)[:frames]


def tone(hertz: float, seconds: float = 30.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * 16_000)) / 16_000)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(samples) * 0.1


SIGNALS: dict[str, Callable[[], np.ndarray]] = {
    "noise": lambda: noise(WINDOW),
    "loud": lambda: noise(WINDOW) * 1e5,
    "quiet": lambda: noise(WINDOW) * 1e-7,
    "silent": lambda: np.zeros(WINDOW),
    "constant": lambda: np.full(WINDOW, 0.7),
    "low tone": lambda: tone(37.3),
    "high tone": lambda: tone(7321.0),
    "clipped": lambda: np.clip(50 * tone(200), -1, 1),
    "clipped with offset": lambda: np.clip(50 * tone(440), -1, 1) * 0.5 + 0.5,
    "fading": lambda: noise(WINDOW) * np.exp(-np.arange(WINDOW) / 16_000),
    "short": lambda: noise(47_111),
}


@cache
def signal(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, what transformers makes of them, what float64 does."""
    samples = SIGNALS[name]().astype(np.float32)
    extractor = WhisperFeatureExtractor(feature_size=128)
    theirs = extractor(samples, sampling_rate=16_000, return_tensors="pt")["input_features"][0].T
    return torch.from_numpy(samples), theirs, torch.from_numpy(expected(samples, 3000))


@pytest.mark.parametrize("name", SIGNALS)
def test_matches_transformers_and_float64(backend: str, name: str) -> None:
    samples, theirs, exact = signal(name)
    ours = ops.log_mel(samples, frames=[3000])
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=ATOL)
    # Against transformers torch's own error comes on top, and it differs from one FFT to another.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.25 * ATOL)


# Around the hop, the half frame, the first reflected sample of the far end, and the full window.
EDGES = [1, 159, 160, 161, 200, 201, 399, 400, 479_639, 479_641, 479_959, 479_961, 479_999, WINDOW]


@cache
def edge_case() -> tuple[Tensor, Tensor, Tensor]:
    windows = [noise(n, seed=n).astype(np.float32) for n in EDGES]
    exact = np.concatenate([expected(w, 3000) for w in windows])
    lengths = torch.tensor([0, *EDGES])
    return torch.from_numpy(np.concatenate(windows)), lengths.cumsum(0), torch.from_numpy(exact)


def test_lengths_at_the_edges(backend: str) -> None:
    samples, cu_samples, exact = edge_case()
    ours = ops.log_mel(samples, cu_samples, [3000] * len(EDGES))
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=ATOL)


def run_everywhere(samples: Tensor, cu_samples: Tensor, frames: Sequence[int]) -> list[Tensor]:
    """The result of each instruction set and of plain torch."""
    before = runtime.cpu_isa()
    results = []
    for isa in runtime.available_cpu_isas():
        runtime.set_cpu_isa(isa)
        results.append(ops.log_mel(samples, cu_samples, frames))
    runtime.set_cpu_isa(before)
    with ops.force_reference():
        return [*results, ops.log_mel(samples, cu_samples, frames)]


WINDOWS = st.lists(
    st.tuples(st.integers(0, 12_000), st.integers(0, 100), st.floats(-7, 3)), min_size=1, max_size=5
)


@settings(max_examples=25, deadline=None)
@given(windows=WINDOWS, seed=st.integers(0, 2**32 - 1))
def test_ragged_windows(windows: list[tuple[int, int, float]], seed: int) -> None:
    """Any mixture of lengths, loudness and counts of frames, more or fewer than hold audio.

    A bin 80 dB below its window's loudest has 1e-4 of its amplitude, of which float32's last bit of the
    loudest, 6e-8, is 6e-4: 1.3e-4 of the result, which this search finds now and then.
    """
    rng = np.random.default_rng(seed)
    parts = [(rng.standard_normal(n) * 10.0**level).astype(np.float32) for n, _, level in windows]
    frames = [count for _, count, _ in windows]
    exact = np.concatenate([expected(p, f) for p, f in zip(parts, frames, strict=True)])
    cu_samples = torch.tensor([0, *(len(p) for p in parts)]).cumsum(0)
    for ours in run_everywhere(torch.from_numpy(np.concatenate(parts)), cu_samples, frames):
        torch.testing.assert_close(ours.double(), torch.from_numpy(exact), rtol=0, atol=2 * ATOL)


def test_silence_is_exact(backend: str) -> None:
    """Frames without audio hold exactly (-10 + 4) / 4, or the floor under a loud window."""
    assert torch.equal(ops.log_mel(torch.zeros(1600), frames=[20]), torch.full((20, 128), -1.5))
    loud = ops.log_mel(torch.from_numpy(noise(1600)).float(), frames=[40])
    assert torch.equal(loud[12:], loud.min().expand(28, 128))


def test_default_frames_hold_the_audio(backend: str) -> None:
    samples = torch.randn(1601)
    assert ops.log_mel(samples).shape == (11, 128)
    torch.testing.assert_close(ops.log_mel(samples), ops.log_mel(samples, frames=[30])[:11])


def test_windows_and_threads_do_not_meet(backend: str) -> None:
    """A packed batch equals its windows one by one, with one thread and with several, to the bit."""
    lengths = [70_000, 0, 333, 160_000, 20_480]
    parts = [torch.randn(n) * 10.0**-i for i, n in enumerate(lengths)]
    cu_samples = torch.tensor([0, *lengths]).cumsum(0)
    threads = runtime.num_threads()
    try:
        runtime.set_num_threads(3)
        packed = ops.log_mel(torch.cat(parts), cu_samples)
        runtime.set_num_threads(1)
        alone = torch.cat([ops.log_mel(p) for p in parts])
    finally:
        runtime.set_num_threads(threads)
    assert torch.equal(packed, alone)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 12_345, 31_999])
def test_non_finite_samples_stay_in_their_window(backend: str, value: float, place: int) -> None:
    clean = torch.randn(32_000)
    broken = clean.clone()
    broken[place] = value
    cu_samples = torch.tensor([0, 32_000, 64_000, 96_000])
    out = ops.log_mel(torch.cat([clean, broken, clean]), cu_samples, [220, 220, 220])
    assert out[220:440].isnan().all()
    assert torch.equal(out[:220], out[440:])
    assert out[:220].isfinite().all()


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]])
def test_empty(backend: str, sizes: list[int]) -> None:
    cu_samples = torch.tensor([0, *sizes]).cumsum(0)
    assert ops.log_mel(torch.zeros(0), cu_samples).shape == (0, 128)
    silent = ops.log_mel(torch.zeros(0), cu_samples, [2] * len(sizes))
    assert torch.equal(silent, torch.full((2 * len(sizes), 128), -1.5))


def test_strided_samples_and_numpy(backend: str) -> None:
    stereo = torch.randn(4000, 2)
    torch.testing.assert_close(
        ops.log_mel(stereo[:, 1]), ops.log_mel(stereo[:, 1].contiguous()), rtol=0, atol=0
    )
    out = ops.log_mel(stereo[:, 1].numpy())
    assert isinstance(out, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(out), ops.log_mel(stereo[:, 1]))


@pytest.mark.parametrize(
    ("samples", "cu_samples", "frames", "named"),
    [
        (torch.zeros(800, dtype=torch.float64), None, None, "samples"),
        (torch.zeros(800, dtype=torch.int16), None, None, "samples"),
        (torch.zeros(2, 800), None, None, "samples"),
        (torch.tensor(0.0), None, None, "samples"),
        (torch.zeros(800), torch.tensor([0, 800], dtype=torch.int32), None, "cu_samples"),
        (torch.zeros(800), torch.tensor([[0, 800]]), None, "cu_samples"),
        (torch.zeros(800), torch.tensor([0, 700]), None, "cu_samples"),
        (torch.zeros(800), torch.tensor([1, 800]), None, "cu_samples"),
        (torch.zeros(800), torch.tensor([0, 900, 800]), None, "cu_samples"),
        (torch.zeros(480_001), None, None, "cu_samples"),
        (torch.zeros(800), None, [3001], "frames"),
        (torch.zeros(800), None, [-1], "frames"),
        (torch.zeros(800), None, [1, 2], "frames"),
        (torch.zeros(800), None, [1.5], "frames"),
        (torch.zeros(800), None, torch.ones(1, 1, dtype=torch.int64), "frames"),
    ],
)
def test_bad_input_names_the_argument(
    backend: str, samples: Tensor, cu_samples: Tensor | None, frames: Any, named: str
) -> None:
    with pytest.raises(ValueError, match=f"log_mel: ({named})"):
        ops.log_mel(samples, cu_samples, frames)


def test_opcheck() -> None:
    arguments = (torch.randn(5000), [0, 2000, 5000], [13, 20])
    torch.library.opcheck(torch.ops.afnext.log_mel.default, arguments)


def test_results_are_float32_whatever_the_default_dtype(backend: str) -> None:
    samples, before = torch.randn(5000), torch.get_default_dtype()
    expected = ops.log_mel(samples)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(ops.log_mel(samples), expected)
        compiled = torch.compile(ops.log_mel, backend="aot_eager")
        assert compiled(samples).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
