"""``python -m afnext.training.synthesis demo scene.wav``: one held-out scene and its true events."""

from __future__ import annotations

import argparse
import sys

import soundfile

from afnext.training.synthesis import SAMPLE_RATE, clip
from afnext.training.tasks import listing

DEMO_SEED = 424_242
"""Used by no recipe, neither for training nor for evaluation."""


def main(arguments: list[str] | None = None) -> None:
    """Write a scene to a WAV file; the truth goes to standard output."""
    parser = argparse.ArgumentParser(prog="python -m afnext.training.synthesis")
    parser.add_argument("command", choices=["demo"])
    parser.add_argument("path")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--index", type=int, default=2, help="which scene of the endless sequence")
    options = parser.parse_args(arguments)
    scene = clip(DEMO_SEED, options.seconds, options.index)
    soundfile.write(options.path, scene.samples, SAMPLE_RATE)
    print(f"Synthesised scene, not used in training (seed {DEMO_SEED}, index {options.index}).",
          file=sys.stderr)  # fmt: skip
    print(f"True events: {listing(scene.events)}")


if __name__ == "__main__":
    main()
