"""The recipe of a run, kept beside it: a run that goes on with another one says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from afnext.training.config import TrainConfig

NAME = "recipe.json"


def keep(recipe: TrainConfig, out: Path) -> None:
    """Write the recipe into a run's folder."""
    path = out / NAME
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    partial.replace(path)


def changes(recipe: TrainConfig, out: Path) -> list[str]:
    """What a recipe changes of the one that a folder has, if it has one: a line for each value."""
    path = out / NAME
    if not path.exists():
        return []
    before = dict(_values(json.loads(path.read_text())))
    after = dict(_values(json.loads(json.dumps(asdict(recipe)))))
    return [
        f"the recipe changed: {key} was {_said(before, key)}, is {_said(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _said(before, key) != _said(after, key)
    ]


def _said(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not there"


def _values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """What a recipe sets, by names as ``stages.tune.steps``."""
    if isinstance(value, list) and all(isinstance(v, dict) and "name" in v for v in value):
        value = {v["name"]: v for v in value}
    if not (isinstance(value, dict) and value):
        yield key, value
        return
    for name, inner in value.items():
        yield from _values(inner, f"{key}.{name}" if key else name)
