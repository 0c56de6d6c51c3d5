"""The engine: generation for many requests at once, over a paged cache."""

from .disk_cache import DiskCache
from .driver import STREAM, WHOLE
from .engine import Engine, EngineStats, Prompt
from .handle import Handle
from .params import GenerationParams
from .request import Generation, Timings, TokenLogprob

__all__ = [
    "STREAM",
    "WHOLE",
    "DiskCache",
    "Engine",
    "EngineStats",
    "Generation",
    "GenerationParams",
    "Handle",
    "Prompt",
    "Timings",
    "TokenLogprob",
]
