"""Synthesised clips of sound events with exact labels, deterministic by seed."""

from afnext.training.synthesis.scenes import Event, Scene, compose
from afnext.training.synthesis.shards import ClipSet, clip, generate, open_clips
from afnext.training.synthesis.sounds import CLASSES, SAMPLE_RATE, render

__all__ = [
    "CLASSES",
    "SAMPLE_RATE",
    "ClipSet",
    "Event",
    "Scene",
    "clip",
    "compose",
    "generate",
    "open_clips",
    "render",
]
