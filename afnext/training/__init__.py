"""Training: recipes, synthesised data and the supervised loop.

``recipe``, ``config``, ``loop`` and ``stage`` are the way of a run; ``synthesis`` and ``tasks`` make
recordings and what is asked about them, ``data`` makes batches, ``network`` says what is learnt of them,
``distributed`` by which processes, ``run`` what stays of it, and ``planner`` what it would take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afnext.training.config import TrainConfig
    from afnext.training.loop import train
    from afnext.training.recipe import load_recipe
    from afnext.training.run.heap import hold_memory

__all__ = ["TrainConfig", "hold_memory", "load_recipe", "train"]

_HOMES = {
    "TrainConfig": "config", "hold_memory": "run.heap", "load_recipe": "recipe", "train": "loop"
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
