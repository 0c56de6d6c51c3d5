"""The recipe of a run, kept beside it: a run that goes on with another one says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from afnext.errors import CheckpointError
from afnext.training.config import TrainConfig
from afnext.training.run.checkpoints import CHECKPOINTS, newest, read_progress

NAME = "recipe.json"


def keep(recipe: TrainConfig, out: Path) -> None:
    """Write the recipe into a run's folder."""
    path = out / NAME
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    partial.replace(path)


def changes(recipe: TrainConfig, out: Path) -> list[str]:
    """What a recipe changes of the one that a folder has, if it has one: a line for each value."""
    if (kept := _kept(out)) is None:
        return []
    before = dict(_values(kept))
    after = dict(_values(json.loads(json.dumps(asdict(recipe)))))
    return [
        f"the recipe changed: {key} was {_said(before, key)}, is {_said(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _said(before, key) != _said(after, key)
    ]


def resume_refusal(recipe: TrainConfig, out: Path) -> str:
    """Why the run in a folder cannot go on by a recipe: it has other numbers of steps for what is trained
    already. Empty where it can, or there is no run.
    """
    checkpoint, kept = newest(out / CHECKPOINTS), _kept(out)
    if checkpoint is None or kept is None:
        return ""
    try:
        progress = read_progress(checkpoint)
    except CheckpointError as error:
        return str(error)
    before = {stage["name"]: stage["steps"] for stage in kept["stages"]}
    for index, stage in enumerate(recipe.stages[: progress.stage + 1]):
        done = index < progress.stage
        taken = before.get(stage.name, stage.steps) if done else progress.step
        if stage.steps < taken:
            return (
                f"{out}: {stage.name}: {taken} steps are taken already, steps is now {stage.steps}"
            )
        # No optimizer is kept of it, and its rates have come to their end.
        if done and stage.steps > taken:
            return (
                f"{out}: {stage.name} has ended after {taken} steps and cannot go on to {stage.steps}: "
                f"begin another run, with init: {out}/model"
            )
    return ""


def _kept(out: Path) -> dict[str, Any] | None:
    """The recipe that a run's folder has."""
    path = out / NAME
    if not path.exists():
        return None
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


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
