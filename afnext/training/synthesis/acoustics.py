"""What happens to sound between its source and a file: rooms, noise, microphones, gain, codecs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from afnext.training.synthesis.sounds import SAMPLE_RATE

Samples = NDArray[np.float64]
# As libsndfile names them: a container, its codec.
CODECS = (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"))
BLOCK = 1 << 16  # samples that an encoder is given at once


def decibel(value: Any) -> Any:
    """The factor of amplitude that so many decibels are: of a number, or of each of an array."""
    return 10.0 ** (value / 20)


def noise(n: int, rng: np.random.Generator) -> Samples:
    """Unit-RMS noise with a spectrum from white (slope 0) to brown (slope 2 in power)."""
    slope = rng.choice([0.0, 1.0, 2.0])
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 40.0)
    wave = np.fft.irfft(spectrum * frequency ** (-slope / 2), n)
    return wave / (wave.std() + 1e-12)


def room(mix: Samples, rng: np.random.Generator) -> Samples:
    """Add reverberation: an exponential tail of noise, -60 dB after 0.15 to 0.6 s."""
    tail = int(rng.uniform(0.15, 0.6) * SAMPLE_RATE)
    response = rng.standard_normal(tail) * decibel(-60.0) ** (np.arange(tail) / tail)
    response /= np.sqrt(np.sum(response**2))
    return mix + rng.uniform(0.08, 0.35) * _convolve(mix, response)


def _convolve(mix: Samples, response: Samples) -> Samples:
    """The first ``len(mix)`` samples, by overlapping blocks."""
    block = 1 << max(13, int(np.ceil(np.log2(4 * len(response)))))
    step, spectrum = block - len(response), np.fft.rfft(response, block)
    out = np.zeros(len(mix) + block)
    for start in range(0, len(mix), step):
        part = np.fft.rfft(mix[start : start + step], block)
        out[start : start + block] += np.fft.irfft(part * spectrum, block)
    return out[: len(mix)]


def colour(mix: Samples, rng: np.random.Generator) -> Samples:
    """A recording chain's tone: a spectral tilt of up to 2 dB an octave around 1 kHz."""
    size = 1 << max(1, (len(mix) - 1).bit_length())  # a power of two: fast at any length
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50.0)
    tilt = rng.uniform(-2, 2) / 6.02
    return np.fft.irfft(np.fft.rfft(mix, size) * (frequency / 1000) ** tilt, size)[: len(mix)]


def narrow(mix: Samples, rng: np.random.Generator) -> Samples:
    """Through another sample rate and back, as of a telephone or an old file: high frequencies are gone."""
    rate = int(rng.choice([8000, 11025, 12000]))
    there = soxr.resample(mix, SAMPLE_RATE, rate)
    back = soxr.resample(there, rate, SAMPLE_RATE)[: len(mix)]
    return np.pad(back, (0, len(mix) - len(back)))


def stretch(wave: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """So many times as long, everything in it so much lower, as of a tape that runs slower."""
    rates = SAMPLE_RATE, SAMPLE_RATE * factor
    stretched: NDArray[np.float32] = soxr.resample(wave, *rates, quality="HQ")
    return stretched


def resonate(wave: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Another body around the same source: a few broad resonances and gaps of up to 8 dB; unit RMS."""
    size = 1 << max(1, (len(wave) - 1).bit_length())
    octave = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50.0) / 1000)
    gain = np.zeros_like(octave)
    for _ in range(int(rng.integers(2, 6))):
        centre, width = rng.uniform(-3, 3), rng.uniform(0.15, 0.8)
        gain += rng.uniform(-8, 8) * np.exp(-0.5 * ((octave - centre) / width) ** 2)
    shaped = np.fft.irfft(np.fft.rfft(wave, size) * decibel(gain), size)[: len(wave)]
    return (shaped / (np.sqrt(np.mean(np.square(shaped))) + 1e-6)).astype(np.float32)


def clip(mix: Samples, rng: np.random.Generator) -> Samples:
    """Overdriven: what comes within 4 to 12 dB of the peak is cut off."""
    level = float(np.abs(mix).max()) * decibel(-rng.uniform(4, 12))
    return np.clip(mix, -level, level)


def lossy(mix: Samples, rng: np.random.Generator) -> Samples:
    """Through a lossy codec at a low rate, decoded again and aligned with what went in."""
    container, codec = CODECS[rng.integers(len(CODECS))]
    peak = float(np.abs(mix).max()) or 1.0
    buffer = io.BytesIO()
    level = float(rng.uniform(0.5, 0.95))  # of compression: 1 is the smallest file
    with soundfile.SoundFile(buffer, "w", SAMPLE_RATE, 1, codec, format=container,
                             compression_level=level) as file:  # fmt: skip
        for start in range(0, len(mix), BLOCK):  # Vorbis keeps what one call brings on its stack
            file.write(mix[start : start + BLOCK] * (0.9 / peak))
    buffer.seek(0)
    decoded, rate = soundfile.read(buffer)
    if rate != SAMPLE_RATE:
        decoded = soxr.resample(decoded, rate, SAMPLE_RATE)
    decoded = np.pad(decoded, (0, max(0, len(mix) - len(decoded))))[: len(mix)]
    return decoded * (peak / 0.9)
