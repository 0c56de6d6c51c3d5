"""The engine: generation over a paged cache."""

from .engine import Engine, Generation, Timings
from .params import GenerationParams

__all__ = ["Engine", "Generation", "GenerationParams", "Timings"]
