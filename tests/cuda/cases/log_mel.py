"""Log-mel: windows of ragged lengths beside float64, ends, silence, what is not finite, 16-bit samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cuda.harness import Case, Kernels, assert_close, generator

WINDOW = 480_000
# As on the CPU (tests/ops/test_log_mel.py): a bin 80 dB below its window's loudest has 1e-4 of its amplitude,
# of which float32's noise, 1e-7 of the loudest, is a thousandth: 1e-4 of the result, twice that now and then.
ATOL = 1e-4


@cache
def mel_filters() -> Tensor:
    """Slaney's triangles of unit area: 200/3 Hz a mel to 1 kHz, above it 27 mels to a factor of 6.4."""
    step = math.log(6.4) / 27
    mels = torch.linspace(0, 15 + math.log(8) / step, 130, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * torch.exp((mels - 15) * step))
    low, peak, high = edges[:-2], edges[1:-1], edges[2:]
    hertz = torch.arange(201, dtype=torch.float64)[:, None] * 40
    height = torch.minimum((hertz - low) / (peak - low), (high - hertz) / (high - peak))
    return height.clamp(min=0) * 2 / (high - low)


def expected(window: Tensor, frames: int) -> Tensor:
    """Whisper's definition in float64; only frames that reach audio are transformed."""
    audible = min(3000, len(window) // 160 + 3)
    padded = F.pad(window.double(), (0, WINDOW - len(window)))
    padded = torch.cat([padded[1:201].flip(0), padded, padded[-201:-1].flip(0)])
    hann = torch.hann_window(400, dtype=torch.float64)
    spectrum = torch.fft.rfft(padded.unfold(0, 400, 160)[:audible] * hann)
    logs = torch.full((3000, 128), -10.0, dtype=torch.float64)
    logs[:audible] = (spectrum.abs().square() @ mel_filters()).clamp(min=1e-10).log10()
    return ((torch.maximum(logs, logs.max() - 8) + 4) / 4)[:frames]


def log_mel(
    kernels: Kernels, windows: Sequence[Tensor], frames: Sequence[int], lead: int = 0
) -> Tensor:
    """The kernel's result; ``lead`` samples before the first window put it off 16-byte boundaries."""
    lengths = torch.tensor([0, *([lead] if lead else []), *map(len, windows)])
    rows = [*([0] if lead else []), *frames]
    out = kernels.empty(sum(rows), 128, dtype=torch.float32)
    samples = torch.cat([torch.ones(lead).to(windows[0].dtype), *windows])
    kernels.compiled.log_mel(kernels.put(samples), lengths.cumsum(0).tolist(), rows, out)
    return kernels.get(out)


def noise(name: str, samples: int, level: float = 0.1) -> Tensor:
    return torch.randn(samples, generator=generator(name)) * level


def ragged(
    name: str, lengths: Sequence[int], frames: Sequence[int], lead: int, kernels: Kernels
) -> None:
    # Windows of one batch differ by 20 dB each: their peaks must not meet.
    windows = [noise(f"{name}{i}", n, 10.0 ** (-1 - i % 5)) for i, n in enumerate(lengths)]
    exact = torch.cat([expected(w, f) for w, f in zip(windows, frames, strict=True)])
    assert_close(log_mel(kernels, windows, frames, lead), exact, relative=0, absolute=2 * ATOL)


def signal(samples: Tensor, kernels: Kernels) -> None:
    frames = [min(3000, len(samples) // 160 + 8)]
    exact = expected(samples, frames[0])
    assert_close(log_mel(kernels, [samples], frames), exact, relative=0, absolute=ATOL)


def tones(samples: int) -> dict[str, Tensor]:
    seconds = torch.arange(samples, dtype=torch.float64) / 16_000
    low, high = (torch.sin(2 * torch.pi * hertz * seconds) for hertz in (37.3, 7321.0))
    return {
        "low tone": low.float(),
        "high tone": high.float(),
        "clipped with offset": ((50 * low).clamp(-1, 1) * 0.5 + 0.5).float(),
        "constant": torch.full((samples,), 0.7),
        "loud": noise("loud", samples, 1e4),
        "quiet": noise("quiet", samples, 1e-8),
        # Loud and quiet frames share a transform.
        "bursts": noise("bursts", samples, 1.0) * (torch.arange(samples) % 1600 < 160),
    }


def integers(kernels: Kernels) -> None:
    """16-bit samples give what their floats give, to the bit; both ends of the range are there."""
    windows = [(noise(f"integers{n}", n) * 2**15).round().short() for n in (6000, 1111)]
    windows[0][:2] = torch.tensor([-(2**15), 2**15 - 1])
    for lead in (0, 3):
        ours = log_mel(kernels, windows, [38, 9], lead)
        assert torch.equal(ours, log_mel(kernels, [w / 2**15 for w in windows], [38, 9], lead))
        exact = torch.cat(
            [expected(w.double() / 2**15, f) for w, f in zip(windows, (38, 9), strict=True)]
        )
        assert_close(ours, exact, relative=0, absolute=2 * ATOL)


def silence(kernels: Kernels) -> None:
    """Frames without audio hold exactly (-10 + 4) / 4, or the floor under a loud window."""
    assert torch.equal(log_mel(kernels, [torch.zeros(1600)], [50]), torch.full((50, 128), -1.5))
    parts = [torch.zeros(0), noise("silence", 1600), torch.zeros(0), torch.zeros(3)]
    out = log_mel(kernels, parts, [2, 40, 0, 70])
    assert torch.equal(out[:2], torch.full((2, 128), -1.5))
    assert torch.equal(out[14:42], out[2:42].min().expand(28, 128))
    assert torch.equal(out[42:], torch.full((70, 128), -1.5))


def not_finite(value: float, kernels: Kernels) -> None:
    """A window that holds one is NaN in all rows, whether or not they are near it; others do not notice."""
    clean = noise("not finite", 6400)
    for place in (0, 3217, 6399):
        broken = clean.clone()
        broken[place] = value
        out = log_mel(kernels, [clean, broken, clean], [70, 70, 70])
        assert out[70:140].isnan().all()
        assert torch.equal(out[:70], out[140:])
        assert out[:70].isfinite().all()


def peak_beyond_what_is_written(kernels: Kernels) -> None:
    """The loudest frame counts though only the first ones are asked for."""
    window = noise("peak beyond", 12_000, 1e-6)
    window[9000:] = noise("peak", 3000, 10.0)
    exact = expected(window, 5)
    assert (exact == exact[0, 0]).all()  # all of it at the floor
    assert_close(log_mel(kernels, [window], [5]), exact, relative=0, absolute=ATOL)


def alone_and_together(kernels: Kernels) -> None:
    """A packed batch equals its windows one by one to the bit: more windows than a launch takes."""
    windows = [noise(f"together{i}", 400 + 37 * i) for i in range(67)]
    frames = [3 + i % 4 for i in range(67)]
    together = log_mel(kernels, windows, frames).split(frames)
    for i in (0, 1, 40, 63, 64, 66):
        assert torch.equal(together[i], log_mel(kernels, [windows[i]], [frames[i]]))


def by_tickets(case: Callable[[Kernels], None], kernels: Kernels) -> None:
    """With one multiprocessor few tiles are too many for two launches; its blocks run at the same time and
    wait for one another."""
    if kernels.emulated:
        kernels.compiled.set_emulation("random", 1, os_threads=2)
        kernels.compiled.set_emulated_device(90, multiprocessors=1)
    try:
        case(kernels)
    finally:
        if kernels.emulated:
            kernels.compiled.set_emulated_device(90)


def many_tiles(kernels: Kernels) -> None:
    """More tiles than tickets between a tile and its end; a window without audio, one with silent tiles, one
    whose second tile comes by fours."""
    frames = [33 + i for i in range(10)]
    lengths = [5300 + 160 * i for i in range(10)]
    lengths[3], (lengths[5], frames[5]), lengths[9] = 0, (800, 130), 10_500
    ragged("many tiles", lengths, frames, 0, kernels)


def burst_at_the_end(kernels: Kernels) -> None:
    """Frames past the 3,000th would see the reflected end louder than any that there is."""
    window = noise("burst", WINDOW, 1e-4)
    window[-20:] = 1.0
    exact = expected(window, 3000)
    assert_close(log_mel(kernels, [window], [3000]), exact, relative=0, absolute=ATOL)


# Around the hop, the half frame and the frame.
SHORT = (1, 159, 160, 161, 200, 201, 399, 400, 0, 5320)
# Around the first reflected sample of the far end, and the full window.
LONG = (479_639, 479_641, 479_959, 479_961, 479_999, WINDOW)

CASES = [
    Case("short", partial(ragged, "short", SHORT, [n // 160 + 3 for n in SHORT], 0)),
    # The first tile is at a window's start, the second inside: only there samples come by fours.
    Case("two tiles", partial(ragged, "two tiles", [11_000, 10_500], [69, 10], 0)),
    Case("off boundaries", partial(ragged, "off boundaries", [10_999], [70], 1)),
    Case("integers", integers),
    Case("silence", silence),
    Case("nan", partial(not_finite, float("nan"))),
    Case("infinity", partial(not_finite, float("inf")), core=False),
    Case("beyond 1e17", partial(not_finite, 1e20), core=False),
    Case("peak beyond what is written", peak_beyond_what_is_written),
    Case("alone and together", alone_and_together, core=False),
    Case("many tiles by tickets", partial(by_tickets, many_tiles)),
    Case("nan by tickets", partial(by_tickets, partial(not_finite, float("nan")))),
    Case("burst at the end", burst_at_the_end, core=False),
    *(Case(name, partial(signal, samples)) for name, samples in tones(4000).items()),
    *(Case(f"{name}, 3 s", partial(signal, x), core=False) for name, x in tones(48_000).items()),
    Case("long", partial(ragged, "long", LONG, [3000] * len(LONG), 0), core=False),
]
