"""What a chain synthesises before its first stage: hours of audio, and what they take of a disk."""

from __future__ import annotations

from dataclasses import dataclass

from afnext.training.config import TrainConfig
from afnext.training.synthesis import banks
from afnext.training.synthesis.dataset import BYTES


@dataclass(frozen=True)
class Made:
    """Recordings that are synthesised: ``seconds`` of them, and the ``bytes`` of all that is kept."""

    seconds: float
    bytes: float


def made(config: TrainConfig) -> Made | None:
    """What a chain makes, about; None if it makes nothing. What is there already counts too."""
    wanted = [found for found in (config.synthesis, config.held_out) if found]
    if not wanted:
        return None
    seconds = size = 0.0
    for synthesis in wanted:
        scenes = [each for sets in synthesis.sets.values() for each in sets]
        seconds += sum(each.seconds for each in scenes)
        if any(each.needs_banks for each in scenes):
            size += banks.size(synthesis.split, synthesis.sentences)
    return Made(seconds, size + seconds * BYTES)
