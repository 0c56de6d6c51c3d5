"""``python -m afnext.training.synthesis demo scene.wav``: one held-out scene and its true events."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import soundfile

from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.dataset import SceneSet
from afnext.training.synthesis.sounds import SAMPLE_RATE
from afnext.training.tasks.sounds import listing

DEMO_SEED = 424_242
"""Used by no recipe, neither for training nor for evaluation."""
NO_BANKS = Banks(Path())  # sounds alone need none


def main(arguments: list[str] | None = None) -> None:
    """Write a scene to a WAV file; the truth goes to standard output."""
    parser = argparse.ArgumentParser(prog="python -m afnext.training.synthesis")
    parser.add_argument("command", choices=["demo"])
    parser.add_argument("path")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--index", type=int, default=2, help="which scene of the endless sequence")
    options = parser.parse_args(arguments)
    try:
        scenes = SceneSet("sounds", 1, options.seconds, options.seconds)
    except ValueError as error:
        parser.error(str(error))
    scene, _ = scenes.scene(DEMO_SEED, options.index, NO_BANKS)
    soundfile.write(options.path, scene.samples, SAMPLE_RATE)
    print(f"Synthesised scene, not used in training (seed {DEMO_SEED}, index {options.index}).",
          file=sys.stderr)  # fmt: skip
    print(f"True events: {listing(scene.events)}")


if __name__ == "__main__":
    main()
